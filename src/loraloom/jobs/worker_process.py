"""The worker as the server sees it: a child process that may end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loraloom.jobs import frames
from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.windows import crash
from loraloom.workflow.graph import JSON

# The worker runs code of node packs, which have no business with the server's own secrets.
_SECRETS = frozenset({"LORALOOM_TOKEN", "RAY_AUTH_TOKEN"})
_SECONDS_TO_END = 5.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How to start a worker.

    factory: "module:function" that makes its `Runner` from `settings`.
    log: receives what the process prints.
    """

    factory: str
    settings: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    log: Callable[[str], object] = sys.stderr.write


class WorkerProcess:
    """One child process."""

    def __init__(self, process: asyncio.subprocess.Process, log: Callable[[str], object]) -> None:
        self._process = process
        self._said: asyncio.Queue[Frame | Exception | None] = asyncio.Queue()
        self._answers: dict[str, asyncio.Future[JSON]] = {}
        self._logging = asyncio.create_task(self._forward(log))
        self._reading = asyncio.create_task(self._read())
        self.last_sign = time.monotonic()

    @classmethod
    async def start(cls, how: WorkerSettings) -> WorkerProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-u",
            "-m",
            "loraloom.jobs.worker",
            how.factory,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if k not in _SECRETS} | {"PYTHONUNBUFFERED": "1"},
            limit=1 << 20,
        )
        worker = cls(process, how.log)
        grace = 0.8 * _SECONDS_TO_END
        await worker.send({"order": "settings", "settings": dict(how.settings), "grace": grace})
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def out_of_reach(self) -> bool:
        return False  # whatever becomes of a child, the system tells

    async def send(self, message: Mapping[str, JSON]) -> None:
        """Send an order; a worker that has ended does not get it, which `receive` tells."""
        stdin = self._process.stdin
        if stdin is None or stdin.is_closing():
            return
        try:
            stdin.write(frames.encode(message))
            await stdin.drain()
        except (ConnectionError, OSError):
            return

    async def receive(self) -> Frame | None:
        """What the worker says next; None when it has ended. Raises BrokenFrame for nonsense."""
        said = await self._said.get()
        if isinstance(said, Exception):
            raise BrokenFrame(f"{type(said).__name__}: {said}") from said
        if said is None:
            self._said.put_nowait(None)
        return said

    async def ask(self, message: Mapping[str, JSON], seconds: float) -> JSON:
        """The worker's answer to a question, also while it runs a job. Raises TimeoutError without one."""
        name = uuid.uuid4().hex
        answer = self._answers[name] = asyncio.get_running_loop().create_future()
        try:
            await self.send({**message, "order": "ask", "to": name})
            async with asyncio.timeout(seconds):
                return await answer
        finally:
            del self._answers[name]

    async def _read(self) -> None:
        stdout = self._process.stdout
        try:
            while stdout is not None and (frame := await frames.receive(stdout)) is not None:
                self.last_sign = time.monotonic()
                kind = frame[0].get("kind")
                if kind == "answer":
                    answer = self._answers.get(str(frame[0].get("to")))
                    if answer is not None and not answer.done():
                        answer.set_result(frame[0].get("answer"))
                elif kind != "alive":
                    self._said.put_nowait(frame)
        except Exception as error:  # noqa: BLE001 - whatever it sent, `receive` tells it
            self._said.put_nowait(error)
        finally:
            self._said.put_nowait(None)

    async def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.ended()

    async def close(self) -> None:
        """The end of its input ends the process, which is killed where that takes too long."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_SECONDS_TO_END):
                await self.ended()
        except TimeoutError:
            await self.kill()

    async def gone(self) -> str:
        """How the process ended that has said its last; one that only closed its output is ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SECONDS_TO_END):
                return await self.ended()
        await self.kill()
        return "it closed its output and did not end"

    async def ended(self) -> str:
        """Wait for the end; how the process ended, in words."""
        code = await self._process.wait()
        await asyncio.wait([self._logging, self._reading], timeout=1)
        self._logging.cancel()
        self._reading.cancel()
        if (crashed := crash(code)) is not None:
            return f"it crashed: {crashed}"
        if code == -9:
            return "it was killed (signal 9; the system does this when memory runs out)"
        if code < 0:
            return f"it crashed (signal {-code}, {_signal_name(-code)})"
        return f"it ended with exit code {code}"

    async def _forward(self, log: Callable[[str], object]) -> None:
        stderr = self._process.stderr
        while stderr is not None and (data := await stderr.read(1 << 16)):
            log(data.decode("utf-8", "replace"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
