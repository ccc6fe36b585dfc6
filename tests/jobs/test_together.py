"""Jobs that are alike run together: one worker, one go, and each with a life of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.jobs.test_dispatcher import Queue, importable_runner, play
from tests.jobs.test_leases import cluster, until
from tests.jobs.tiny_runner import prompt

from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Job, Request, Status
from loraloom.jobs.worker_process import WorkerSettings
from loraloom.jobs.writer import StoreThread

__all__ = ["importable_runner"]


def likeness(request: Request) -> str | None:
    """Alike are jobs with the same classes in the middle."""
    middle = request.prompt.get("2")
    return str(middle["class_type"]) if isinstance(middle, dict) else None


@asynccontextmanager
async def queue(folder: Path, rows: int = 8) -> AsyncGenerator[Queue]:
    """One whose jobs wait until it is told to go on."""
    store = StoreThread(folder / "queue.db", max_pending=100, max_finished=100)
    how = WorkerSettings("tests.jobs.tiny_runner:make", {"output": str(folder / "output")}, lambda text: None)
    found = Queue(Dispatcher(store, how, paused=True, likeness=likeness, rows=rows))
    await found.dispatcher.start()
    try:
        yield found
    finally:
        await found.dispatcher.stop()
        store.close()


def outputs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / "output").iterdir())}


def order_of_starts(q: Queue) -> list[str]:
    return [n.job.id for n in q.notices if n.kind == "started" and n.job is not None]


def test_waiting_jobs_that_are_alike_run_together(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            meets = [await q.submit(prompt("Meet", value=n, times=2)) for n in range(3)]
            other = await q.submit(prompt("Wait"))
            late = await q.submit(prompt("Meet", value=9, times=2))
            await q.dispatcher.pause(False)
            done = [await q.done(job) for job in (*meets, late, other)]
            assert [job.status for job in done] == [Status.COMPLETED] * 5
            assert [*outputs(tmp_path).values()] == ["8", "8", "8", "8", "7"]
            assert order_of_starts(q) == [job.id for job in (*meets, late, other)]
            steps = [n.job.id for n in q.notices if n.kind == "progress" and n.job is not None]
            assert sorted(steps.count(job.id) for job in meets) == [2, 2, 2]
            assert all(job.result and job.result["outputs"] for job in done)

    play(test())


def test_no_more_than_so_many_run_together(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, rows=2) as q:
            jobs = [await q.submit(prompt("Meet", value=n)) for n in range(5)]
            await q.dispatcher.pause(False)
            for job in jobs:
                await q.done(job)
            assert [*outputs(tmp_path).values()] == ["2", "2", "2", "2", "1"]

    play(test())


def test_each_of_several_workers_takes_its_share(tmp_path: Path) -> None:
    """One that is free first leaves work for those that soon will be."""

    async def test() -> None:
        async with cluster(tmp_path, 2, paused=True, likeness=likeness, rows=16) as (q, places):
            jobs = [await q.submit(prompt("Meet")) for _ in range(12)]
            await q.dispatcher.pause(False)
            await until(lambda: sum(len(place.jobs) for place in places) == 12)
            assert [len(place.jobs) for place in places] == [6, 6]
            later = [await q.submit(prompt("Meet")) for _ in range(5)]
            for number in range(6):
                places[0].complete(number)
            await until(lambda: len(places[0].jobs) > 6)
            assert places[0].jobs[6:] == [job.id for job in later[:3]]
            assert {*places[0].jobs[:6], *places[1].jobs} == {job.id for job in jobs}

    play(test())


def test_a_higher_priority_is_not_waited_for_by_a_lower_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            low = await q.submit(prompt("Meet"))
            high = await q.dispatcher.submit(Request(prompt("Meet")), priority=1)
            await q.dispatcher.pause(False)
            await q.done(low)
            assert order_of_starts(q) == [high.id, low.id]
            assert [*outputs(tmp_path).values()] == ["1", "1"]

    play(test())


def test_a_bad_job_fails_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            good = [await q.submit(prompt("Meet", times=3)) for _ in range(2)]
            graph = prompt("Meet", times=1)
            graph["3"] = {"class_type": "Fail", "inputs": {"value": ["2", 0]}}
            graph["9"] = {"class_type": "Save", "inputs": {"value": ["3", 0], "name": "out"}}
            bad = await q.submit(graph)
            unknown = prompt("Meet")
            unknown["9"] = {"class_type": "Nothing", "inputs": {}}
            lost = await q.submit(unknown)
            await q.dispatcher.pause(False)
            assert [(await q.done(job)).status for job in good] == [Status.COMPLETED] * 2
            failed, broken = await q.done(bad), await q.done(lost)
            assert failed.status is broken.status is Status.FAILED
            assert failed.error is not None and failed.error["node"] == "3"
            assert [*outputs(tmp_path).values()] == ["7", "7"]  # three met once, then two twice

    play(test())


def test_a_cancelled_job_leaves_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            jobs = [await q.submit(prompt("Meet", times=40)) for _ in range(3)]
            await q.dispatcher.pause(False)
            await q.heard("progress")
            assert {*q.dispatcher.running} == {job.id for job in jobs}
            assert await q.dispatcher.cancel(jobs[1].id)
            assert (await q.done(jobs[1])).status is Status.CANCELLED
            assert {*q.dispatcher.running} == {jobs[0].id, jobs[2].id}
            assert [(await q.done(job)).status for job in (jobs[0], jobs[2])] == [Status.COMPLETED] * 2

    play(test())


def test_all_that_run_are_interrupted_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            jobs = [await q.submit(prompt("Meet", times=200)) for _ in range(2)]
            await q.dispatcher.pause(False)
            await q.heard("progress")
            assert await q.dispatcher.interrupt()
            assert [(await q.done(job)).status for job in jobs] == [Status.CANCELLED] * 2
            assert not await q.dispatcher.interrupt()

    play(test())


def test_after_a_crash_each_job_runs_by_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            graph = prompt("Meet", times=5)
            graph["3"] = {"class_type": "Crash", "inputs": {"value": ["2", 0]}}
            graph["9"] = {"class_type": "Save", "inputs": {"value": ["3", 0], "name": "out"}}
            good = [await q.submit(prompt("Meet", times=20)) for _ in range(2)]
            bad = await q.submit(graph)
            await q.dispatcher.pause(False)
            assert [(await q.done(job)).status for job in good] == [Status.COMPLETED] * 2
            assert (await q.done(bad)).status is Status.QUARANTINED
            assert [*outputs(tmp_path).values()] == ["20", "20"]  # each alone
            known = [await q.dispatcher.call(lambda s, i=job.id: s.get(i)) for job in good]
            assert [job.deaths for job in known] == [1, 1]

    play(test())


@pytest.mark.parametrize("rows", [1])
def test_one_row_is_one_job_after_the_other(tmp_path: Path, rows: int) -> None:
    async def test() -> None:
        async with queue(tmp_path, rows) as q:
            jobs: list[Job] = [await q.submit(prompt("Meet")) for _ in range(2)]
            await q.dispatcher.pause(False)
            for job in jobs:
                await q.done(job)
            await asyncio.sleep(0)
            assert [*outputs(tmp_path).values()] == ["1", "1"]

    play(test())
