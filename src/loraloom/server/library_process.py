"""The process that reads LoRA and model files for the server, which itself imports none of that."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

from loraloom.errors import InputError, LoraloomError
from loraloom.jobs import frames
from loraloom.visible import visible_log
from loraloom.windows import out_of_reach_of_ctrl_c
from loraloom.workflow.graph import JSON

MODULE = "loraloom.cli.library_worker"
_SECONDS = 120.0
_SECONDS_TO_END = 2.0


class LibraryGone(LoraloomError):
    """The process has ended, or did not answer in time; the next question starts it anew."""


class LibraryProcess:
    """Started with the first question. Questions are answered in their order."""

    def __init__(self, module: str = MODULE, log: Callable[[str], object] = sys.stderr.write) -> None:
        self._module, self._log = module, log
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._answers: dict[int, asyncio.Future[JSON]] = {}
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def ask(self, do: str, tail: bytes = b"", **values: JSON) -> Any:
        """The answer to a question of `cli.library_worker`. Raises InputError for a refusal, LibraryGone."""
        process = await self._ready()
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            assert process.stdin is not None
            process.stdin.write(frames.encode({"to": number, "do": do, **values}, tail))
            await process.stdin.drain()
            async with asyncio.timeout(_SECONDS):
                return await answer
        except (ConnectionError, TimeoutError) as error:
            raise LibraryGone("the process that reads model files does not answer; try again") from error
        finally:
            self._answers.pop(number, None)

    async def stop(self) -> None:
        """Let the process end with its input, behind the question that it answers; kill it where that takes
        too long."""
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                async with asyncio.timeout(_SECONDS_TO_END):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ready(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                pipe = asyncio.subprocess.PIPE
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", self._module, stdin=pipe, stdout=pipe, stderr=pipe,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"}, limit=1 << 20, **out_of_reach_of_ctrl_c(),
                )  # fmt: skip
                self._tasks = [
                    asyncio.create_task(self._read(self._process)),
                    asyncio.create_task(self._forward(self._process)),
                ]
            return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while (frame := await frames.receive(process.stdout)) is not None:
                said = frame[0]
                answer = self._answers.get(int(str(said["to"])))
                if answer is None or answer.done():
                    continue
                if "error" in said:
                    answer.set_exception(InputError(str(said["error"])))
                else:
                    answer.set_result(said["answer"])
        finally:
            await self._ended(process)

    async def _ended(self, process: asyncio.subprocess.Process) -> None:
        """Nobody waits for a process that says nothing more."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(LibraryGone("the process that reads model files has ended; try again"))

    async def _forward(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while data := await process.stderr.read(1 << 16):
            self._log(visible_log(data.decode("utf-8", "replace")))
