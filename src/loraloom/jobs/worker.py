"""The worker process: runs one job at a time, or several together, and tells the server what happens.

Started as `python -m loraloom.jobs.worker MODULE:FACTORY`. The factory gets the settings of the first frame
and makes the `Runner`. Frames go through the process's original standard input and output; whatever nodes
print goes to standard error. The process ends with its server: when the input closes, for which jobs that run
are cancelled, or by the kernel's signal where there is one.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import IO, Any, Protocol, TypeAlias, cast

from loraloom import heap
from loraloom.engine.events import Event
from loraloom.errors import LoraloomError
from loraloom.jobs import frames
from loraloom.jobs.frames import Frame
from loraloom.jobs.job import Request
from loraloom.jobs.messages import Encoder, describe
from loraloom.jobs.orders import ENDS, RUN, Entry, jobs_of, rows_of
from loraloom.uncollected import uncollected
from loraloom.workflow.graph import JSON

HEARTBEAT_SECONDS = 2.0
_BUSY_SECONDS = 1.0


class Runner(Protocol):
    """What runs jobs in the worker."""

    def run(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
        """The events of a job, the last of which says how it ended."""
        ...

    def run_together(
        self, requests: Sequence[Request], cancels: Sequence[threading.Event], rows: int
    ) -> Iterator[tuple[int, Event]]:
        """The events of several jobs, each with the number of its job, which share what they can: at most so
        many rows of a batch. Each job's last event says how it ended, whatever becomes of the others."""
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


Run: TypeAlias = "Callable[[Sequence[Request], Sequence[threading.Event]], Iterator[tuple[int, Event]]]"

Factory = Callable[[Mapping[str, JSON]], Runner]


class Worker:
    """Reads the server's frames in a thread, runs jobs in the thread that calls `work`."""

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self._source, self._sink = source, sink
        self._sending = threading.Lock()
        self._orders: SimpleQueue[dict[str, JSON] | None] = SimpleQueue()  # None: the input has ended
        self._cancels: dict[str, threading.Event] = {}  # of the jobs that run
        self._grace = 0.0

    def work(self, factory: Factory) -> None:
        """Serve as long as there is input, whose end ends the process, whatever it does; not at all where the
        settings cannot be followed. The first frame says how many seconds jobs have to end ("grace"): a node
        may just be writing a file."""
        first = frames.read(self._source)
        if first is None:
            return
        self._grace = float(cast("float", first[0].get("grace") or 0.0))
        threading.Thread(target=self._beat, name="loraloom-heartbeat", daemon=True).start()
        try:
            with uncollected():
                runner = factory(cast("Mapping[str, JSON]", first[0].get("settings") or {}))
        except LoraloomError as error:
            self._send(({"kind": "refused", "reason": str(error)}, b""))
            return
        threading.Thread(target=self._listen, args=(runner,), name="loraloom-orders", daemon=True).start()
        self._send(({"kind": "ready", "worker": runner.describe(), "declared": runner.declared()}, b""))
        while (order := self._next()) is not None:
            if order["order"] == "free":
                runner.free(bool(order.get("models")), bool(order.get("results")))
            elif order["order"] == "run_together":
                self._run(jobs_of(order), partial(_together, runner, rows_of(order)))
            else:
                self._run(jobs_of(order), partial(_alone, runner))
        sys.stderr.flush()
        os._exit(0)  # at once: a library may take long to be taken down, or a thread of a node pack go on

    def _next(self) -> dict[str, JSON] | None:
        """The next order; None at the end of the input. While none comes, memory that is free goes back to
        the system."""
        try:
            return self._orders.get(timeout=_BUSY_SECONDS)
        except Empty:
            heap.give_back()
            return self._orders.get()

    def _run(self, jobs: Sequence[Entry], run: Run) -> None:
        """Run jobs and send what happens; each of them ends, whatever happens."""
        names = [str(job["job"]) for job in jobs]
        encoders = [Encoder(previews=str(job.get("previews") or "")) for job in jobs]
        going = dict.fromkeys(names)
        last: JSON = {"type": "incomplete", "message": "the run ended without saying how"}
        try:
            requests = [Request.from_json(cast("dict[str, Any]", job["request"])) for job in jobs]
            for number, event in run(requests, [self._cancels[name] for name in names]):
                message, tail = encoders[number].frame(event)
                self._send(({**message, "job": names[number]}, tail))
                if message["kind"] in ENDS:
                    going.pop(names[number], None)
        except Exception as error:  # noqa: BLE001 - the jobs fail, the worker goes on
            last = cast("JSON", describe(error))
        for name in going:
            self._send(({"kind": "failed", "error": last, "job": name}, b""))

    def _listen(self, runner: Runner) -> None:
        while (frame := frames.read(self._source)) is not None:
            order = frame[0]
            if order["order"] == "cancel":
                if (cancel := self._cancels.get(str(order["job"]))) is not None:
                    cancel.set()
                continue
            if order["order"] == "ask":
                self._answer(runner, order)
                continue
            if order["order"] in RUN:
                # The server sends the next jobs only after the end of those before.
                self._cancels = {str(job["job"]): threading.Event() for job in jobs_of(order)}
            self._orders.put(order)
        for cancel in self._cancels.values():
            cancel.set()
        self._orders.put(None)
        time.sleep(self._grace)
        os._exit(0)

    def _answer(self, runner: Runner, order: Mapping[str, JSON]) -> None:
        """What nodes object to in a request; without one, what they declare now."""
        answer: JSON = []
        try:
            if "request" in order:
                answer = runner.check(Request.from_json(cast("dict[str, Any]", order["request"])))
            else:
                answer = runner.declared()
        except Exception as error:  # noqa: BLE001 - the run itself will say it with its node
            sys.stderr.write(f"a check of nodes failed: {error}\n")
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


def _alone(
    runner: Runner, requests: Sequence[Request], cancels: Sequence[threading.Event]
) -> Iterator[tuple[int, Event]]:
    return ((0, event) for event in runner.run(requests[0], cancels[0]))


def _together(
    runner: Runner, rows: int, requests: Sequence[Request], cancels: Sequence[threading.Event]
) -> Iterator[tuple[int, Event]]:
    return runner.run_together(requests, cancels, rows)


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
    heap.reuse()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which never fails at a character that its encoding lacks
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    module, _, name = sys.argv[1].partition(":")
    with uncollected():
        factory = cast("Factory", getattr(importlib.import_module(module), name))
    Worker(source, sink).work(factory)


if __name__ == "__main__":
    main()
