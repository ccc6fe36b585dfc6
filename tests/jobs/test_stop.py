"""A queue that is stopped: workers end by themselves, and what they finish is settled, but nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.jobs.test_dispatcher import Queue, importable_runner, play, queue
from tests.jobs.tiny_runner import prompt

from loraloom.jobs import worker_process
from loraloom.jobs.job import Job, Status
from loraloom.jobs.store import Store
from loraloom.jobs.worker_process import WorkerProcess

__all__ = ["importable_runner"]

WRITE: dict[str, Any] = {
    "1": {"class_type": "Number", "inputs": {"value": 7}},
    "9": {"class_type": "Write", "inputs": {"value": ["1", 0], "seconds": 1.0}},
}


def worker_of(q: Queue) -> WorkerProcess:
    worker = q.dispatcher.lanes["here-0"].keeper.worker
    assert isinstance(worker, WorkerProcess)
    return worker


def kept(folder: Path, job: Job) -> Job:
    """The job as the next server finds it."""
    store = Store(folder / "queue.db")
    try:
        return store.get(job.id)
    finally:
        store.close()


def test_a_worker_that_does_nothing_ends_by_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            assert await q.dispatcher.settled()
            await q.dispatcher.stop()
            assert await worker_of(q).ended() == "it ended with exit code 0"

    play(test())


def test_what_a_job_is_writing_is_whole_and_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_SECONDS_TO_END", 60.0)

    async def test() -> None:
        output = tmp_path / "output"
        async with queue(tmp_path) as q:
            job = await q.submit(WRITE)
            async with asyncio.timeout(30):
                while not [*output.glob("*.part"), *output.glob(".*.part")]:
                    await asyncio.sleep(0.01)
            await q.dispatcher.stop()
            assert await worker_of(q).ended() == "it ended with exit code 0"
        assert [path.name for path in output.iterdir()] == ["slow.txt"]
        assert (output / "slow.txt").read_text() == "7" * 10
        assert kept(tmp_path, job).status is Status.COMPLETED

    play(test())


def test_a_job_that_is_not_done_runs_again_and_has_lost_no_attempt(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            long = await q.submit(prompt("Wait", seconds=60))
            await q.heard("progress")
            await q.dispatcher.stop()
            assert await worker_of(q).ended() == "it ended with exit code 0"
        assert kept(tmp_path, long).status is Status.RUNNING
        async with queue(tmp_path) as q:
            await q.heard("progress")
            assert await q.dispatcher.cancel(long.id)
            await q.dispatcher.stop()
        found = kept(tmp_path, long)
        assert (found.status, found.claims, found.deaths) == (Status.CANCELLED, 2, 0)

    play(test())


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            assert await q.dispatcher.settled()
            monkeypatch.setattr(worker_process, "_SECONDS_TO_END", 0.3)
            psutil.Process(worker_of(q).pid).suspend()
            await q.dispatcher.stop()
            assert not worker_of(q).alive and await worker_of(q).ended() != "it ended with exit code 0"

    play(test())
