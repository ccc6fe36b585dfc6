"""A worker's process as the server sees it, whatever that process does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psutil
import pytest

from loraloom.jobs import worker_process
from loraloom.jobs.frames import BrokenFrame
from loraloom.jobs.worker_process import WorkerProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends are told by signals")


@asynccontextmanager
async def running(code: str) -> AsyncGenerator[tuple[WorkerProcess, list[str]]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-E", "-c", f"import json, os, signal, struct, sys, time\n{code}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    log: list[str] = []
    worker = WorkerProcess(process, log.append)
    try:
        yield worker, log
    finally:
        await worker.kill()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sys.exit(3)", "it ended with exit code 3"),
        ("os.abort()", "it crashed (signal 6, SIGABRT)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "it was killed (signal 9; the system does this when"),
        ("os.kill(os.getpid(), 40)", "it crashed (signal 40, unknown)"),
        ("os.close(1); time.sleep(600)", "it closed its output and did not end"),
    ],
)
def test_how_it_ended_is_said_in_words(monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    if code.startswith("os.close"):
        monkeypatch.setattr(worker_process, "_SECONDS_TO_END", 0.3)

    async def test() -> None:
        async with running(code) as (worker, _):
            assert await worker.receive() is None and await worker.receive() is None
            assert (await worker.gone()).startswith(said)
            assert not worker.alive
            await worker.send({"order": "run"})  # which nobody gets
            await worker.kill()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"Traceback (most recent call last)", "BrokenFrame: a frame of"),
        (b"\0\0\0\x02\0\0\0\0[]", "a frame holds list, expected an object"),
        (b"\0\0\0\x02\0\0\0\0{]", "JSONDecodeError"),
        (b"\0\0\0\x02\0\0\0\0\xff\xff", "UnicodeDecodeError"),
    ],
)
def test_what_is_no_frame_is_said(written: bytes, said: str) -> None:
    async def test() -> None:
        async with running(f"os.write(1, {written!r}); time.sleep(600)") as (worker, _):
            with pytest.raises(BrokenFrame, match=said):
                await worker.receive()
            assert worker.alive and await worker.receive() is None

    asyncio.run(test())


ANSWERS = """
def read():
    lengths = struct.unpack(">II", sys.stdin.buffer.read(8))
    return json.loads(sys.stdin.buffer.read(sum(lengths)))

def say(**message):
    text = json.dumps(message).encode()
    os.write(1, struct.pack(">II", len(text), 0) + text)

asked = read()
say(kind="alive")
say(kind="answer", to="somebody else", answer=1)
say(kind="answer", to=asked["to"], answer=2)
say(kind="answer", to=asked["to"], answer=3)
print("read", asked["order"], file=sys.stderr, flush=True)
say(kind="last")
read()
"""


def test_answers_go_to_who_asked_and_signs_of_life_to_nobody() -> None:
    async def test() -> None:
        async with running(ANSWERS) as (worker, log):
            before = worker.last_sign
            assert await worker.ask({"about": "x"}, 60) == 2
            assert await worker.receive() == ({"kind": "last"}, b"")
            assert worker.last_sign > before and worker.pid > 0 and not worker.out_of_reach
            await worker.kill()
            assert "".join(log) == "read ask\n"
            with pytest.raises(TimeoutError):
                await worker.ask({"about": "x"}, 0.1)

    asyncio.run(test())


def test_a_process_that_has_gone_unseen_is_no_error_to_end() -> None:
    async def test() -> None:
        async with running("time.sleep(600)") as (worker, _):
            psutil.Process(worker.pid).kill()
            await worker.kill()
            assert not worker.alive  # how it ended may be lost: asyncio and subprocess both wait for it

    asyncio.run(test())
