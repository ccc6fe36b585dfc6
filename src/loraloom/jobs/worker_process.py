"""The worker as the server sees it: a child process that may end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loraloom.jobs import frames
from loraloom.jobs.frames import Frame
from loraloom.workflow.graph import JSON


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
        self._logging = asyncio.create_task(self._forward(log))

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
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            limit=1 << 20,
        )
        worker = cls(process, how.log)
        await worker.send({"order": "settings", "settings": dict(how.settings)})
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

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
        """What the worker says next; None when it has ended."""
        stdout = self._process.stdout
        return None if stdout is None else await frames.receive(stdout)

    async def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.ended()

    async def ended(self) -> str:
        """Wait for the end; how the process ended, in words."""
        code = await self._process.wait()
        await asyncio.wait([self._logging], timeout=1)
        self._logging.cancel()
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
