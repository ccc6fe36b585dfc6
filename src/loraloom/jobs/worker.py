"""The worker process: runs one job at a time and tells the server what happens.

Started as `python -m loraloom.jobs.worker MODULE:FACTORY`. The factory gets the settings of the first frame
and makes the `Runner`. Frames go through the process's original standard input and output; whatever nodes
print goes to standard error. The process ends with its server: when the input closes, or by the kernel's
signal where there is one.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import IO, Any, Protocol, cast

from loraloom.engine.events import Event
from loraloom.jobs import frames
from loraloom.jobs.frames import Frame
from loraloom.jobs.job import Request
from loraloom.jobs.messages import Encoder, describe
from loraloom.workflow.graph import JSON

HEARTBEAT_SECONDS = 2.0
_FINAL = ("completed", "failed", "cancelled")


class Runner(Protocol):
    """What runs jobs in the worker."""

    def run(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
        """The events of a job, the last of which says how it ended."""
        ...

    def describe(self) -> dict[str, JSON]:
        """What the server shows of this worker: devices, versions."""
        ...

    def declared(self) -> JSON:
        """The node classes that it brings along beside those that the server knows; None for none."""
        ...

    def check(self, request: Request) -> list[JSON]:
        """What the nodes' own checks object to: `messages.problem` for each. Called from another thread."""
        ...

    def free(self, models: bool, results: bool) -> None:
        """Let go of resident models, or of kept results."""
        ...

    def close(self) -> None: ...


Factory = Callable[[Mapping[str, JSON]], Runner]


class Worker:
    """Reads the server's frames in a thread, runs jobs in the thread that calls `work`."""

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self._source, self._sink = source, sink
        self._sending = threading.Lock()
        self._orders: SimpleQueue[dict[str, JSON]] = SimpleQueue()
        self._cancel = threading.Event()
        self._current: str | None = None

    def work(self, factory: Factory) -> None:
        """Serve until the input ends."""
        first = frames.read(self._source)
        if first is None:
            return
        threading.Thread(target=self._beat, name="loraloom-heartbeat", daemon=True).start()
        runner = factory(cast("Mapping[str, JSON]", first[0].get("settings") or {}))
        threading.Thread(target=self._listen, args=(runner,), name="loraloom-orders", daemon=True).start()
        self._send(({"kind": "ready", "worker": runner.describe(), "declared": runner.declared()}, b""))
        while (order := self._orders.get())["order"] != "end":
            if order["order"] == "free":
                runner.free(bool(order.get("models")), bool(order.get("results")))
            else:
                self._run(runner, order)
        runner.close()

    def _run(self, runner: Runner, order: Mapping[str, JSON]) -> None:
        encoder = Encoder(previews=str(order.get("previews") or ""))
        message: dict[str, JSON] = {}
        try:
            request = Request.from_json(cast("dict[str, Any]", order["request"]))
            for event in runner.run(request, self._cancel):
                message, tail = encoder.frame(event)
                self._send(({**message, "job": order["job"]}, tail))
        except Exception as error:  # noqa: BLE001 - the job fails, the worker goes on
            message = {"kind": "failed", "error": cast("JSON", describe(error))}
            self._send(({**message, "job": order["job"]}, b""))
        if message.get("kind") not in _FINAL:
            error_said: JSON = {"type": "incomplete", "message": "the run ended without saying how"}
            self._send(({"kind": "failed", "error": error_said, "job": order["job"]}, b""))

    def _listen(self, runner: Runner) -> None:
        while (frame := frames.read(self._source)) is not None:
            order = frame[0]
            if order["order"] == "cancel":
                if order["job"] == self._current:
                    self._cancel.set()
                continue
            if order["order"] == "ask":
                self._answer(runner, order)
                continue
            if order["order"] == "run":
                # The server sends the next job only after the end of the one before.
                self._cancel.clear()
                self._current = str(order["job"])
            self._orders.put(order)
            if order["order"] == "end":
                return
        os._exit(0)

    def _answer(self, runner: Runner, order: Mapping[str, JSON]) -> None:
        try:
            answer = runner.check(Request.from_json(cast("dict[str, Any]", order["request"])))
        except Exception as error:  # noqa: BLE001 - the run itself will say it with its node
            sys.stderr.write(f"a check of nodes failed: {error}\n")
            answer = []
        self._send(({"kind": "answer", "to": order["to"], "answer": answer}, b""))

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(HEARTBEAT_SECONDS):
            self._send(({"kind": "alive"}, b""))

    def _send(self, frame: Frame) -> None:
        data = frames.encode(*frame)
        try:
            with self._sending:
                self._sink.write(data)
                self._sink.flush()
        except (BrokenPipeError, ValueError):
            os._exit(0)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, so that no job runs on unseen."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main() -> None:
    """Run as a process; the argument names the runner's factory."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which never fails at a character that its encoding lacks
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    module, _, name = sys.argv[1].partition(":")
    Worker(source, sink).work(cast("Factory", getattr(importlib.import_module(module), name)))
    sink.close()


if __name__ == "__main__":
    main()
