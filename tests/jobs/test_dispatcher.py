"""The queue at work, with real worker processes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.jobs.tiny_runner import prompt

from loraloom.errors import DiskFull
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Job, Request, Status
from loraloom.jobs.live import LiveJob
from loraloom.jobs.notices import Limits, Notice
from loraloom.jobs.store import JobEvent, Store
from loraloom.jobs.worker_process import WorkerSettings
from loraloom.jobs.writer import StoreThread
from loraloom.workflow.graph import JSON


class Queue:
    """A dispatcher over a folder, with what it has told."""

    def __init__(self, dispatcher: Dispatcher, log: Sequence[str] = ()) -> None:
        self.dispatcher, self.log = dispatcher, log
        self.notices: list[Notice] = []
        self._news = asyncio.Event()
        dispatcher.listen(self._hear)

    def _hear(self, notice: Notice) -> None:
        self.notices.append(notice)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def heard(self, kind: str) -> Notice:
        await self.until(lambda: any(n.kind == kind for n in self.notices))
        return next(n for n in self.notices if n.kind == kind)

    async def submit(self, graph: dict[str, JSON], **more: JSON) -> Job:
        return await self.dispatcher.submit(Request(graph, dict(more)))

    async def done(self, job: Job) -> Job:
        def over() -> bool:
            return any(n.job is not None and n.job.id == job.id and n.job.status.final for n in self.notices)

        await self.until(over)
        return await self.dispatcher.call(lambda s: s.get(job.id))


@asynccontextmanager
async def queue(
    folder: Path,
    limits: Limits | None = None,
    factory: str = "make",
    paused: bool = False,
    previews: str = "none",
) -> AsyncGenerator[Queue, None]:
    store = StoreThread(folder / "queue.db", max_pending=100, max_finished=100)
    log: list[str] = []
    how = WorkerSettings(f"tests.jobs.tiny_runner:{factory}", {"output": str(folder / "output")}, log.append)
    dispatcher = Dispatcher(store, how, limits=limits, paused=paused, previews=previews)
    found = Queue(dispatcher, log)
    await dispatcher.start()
    try:
        yield found
    finally:
        await dispatcher.stop()
        store.close()


def play(test: Coroutine[None, None, None]) -> None:
    asyncio.run(test)


@pytest.fixture(autouse=True)
def importable_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)


def test_a_job_runs_and_its_result_is_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            job = await q.done(await q.submit(prompt("Wait"), preview_method="auto"))
            assert job.status is Status.COMPLETED
            result = job.result
            assert result is not None
            assert result["outputs"] == {
                "9": {"images": [{"filename": "out_00000_.txt", "subfolder": "", "type": "output"}]}
            }
            assert result["receipts"] == [{"node": "2", "matched": 2, "name": "a"}]
            assert result["warnings"] == ["node 2: slow"]
            assert (tmp_path / "output/out_00000_.txt").read_text() == "7"
            kinds = [n.kind for n in q.notices if n.job is not None and n.kind not in ("queue", "progress")]
            assert kinds[:2] == ["started", "run_started"]
            assert kinds[-1] == "completed"
            assert any(n.preview.startswith(b"\xff\xd8") for n in q.notices)
            events = await q.dispatcher.call(lambda s: s.events(job.id))
            assert [e.kind for e in events] == [n.event.kind for n in q.notices if n.event is not None]
            assert [e.sequence for e in events] == [
                n.event.sequence for n in q.notices if n.event is not None
            ]

    play(test())


def test_previews_are_off_unless_asked_for(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            await q.done(await q.submit(prompt("Wait")))
            assert not any(n.preview for n in q.notices)

    play(test())


@pytest.mark.parametrize(("asked", "seen"), [("default", True), ("none", False)])
def test_the_servers_choice_of_previews_is_for_those_who_leave_it(
    tmp_path: Path, asked: str, seen: bool
) -> None:
    async def test() -> None:
        async with queue(tmp_path, previews="auto") as q:
            await q.done(await q.submit(prompt("Wait"), preview_method=asked))
            assert any(n.preview for n in q.notices) == seen

    play(test())


def test_the_result_is_committed_before_it_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            seen: list[Status] = []
            other = StoreThread(tmp_path / "queue.db", max_pending=1, max_finished=1)

            def hear(notice: Notice) -> None:
                if notice.kind == "completed" and notice.job is not None:
                    job_id = notice.job.id
                    seen.append(other.call(lambda s: s.get(job_id)).result().status)

            q.dispatcher.listen(hear)
            await q.done(await q.submit(prompt()))
            other.close()
            assert seen == [Status.COMPLETED]

    play(test())


def test_a_failing_node_fails_its_job_and_the_worker_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            bad, good = await q.submit(prompt("Fail")), await q.submit(prompt())
            failed = await q.done(bad)
            assert failed.status is Status.FAILED
            assert failed.error is not None
            assert failed.error["node"] == "2"
            assert failed.error["message"] == "node 2 “middle” (Fail): cannot use 7"
            assert (await q.done(good)).status is Status.COMPLETED
            assert len([n for n in q.notices if n.kind == "worker"]) == 1

    play(test())


def test_a_prompt_that_cannot_run_fails_its_job(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            failed = await q.done(await q.submit({"1": {"class_type": "Number", "inputs": {}}}))
            assert failed.error is not None
            assert "no node whose result is shown or saved" in str(failed.error["message"])

    play(test())


def test_a_crash_costs_one_attempt_and_the_second_puts_the_job_aside(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            bad = await q.submit(prompt("Crash"))
            unlucky = await q.submit(prompt("Crash", once=str(tmp_path / "once")))
            good = await q.submit(prompt())
            quarantined = await q.done(bad)
            assert quarantined.status is Status.QUARANTINED
            assert quarantined.error is not None
            assert "memory runs out" in str(quarantined.error["message"])
            lucky = await q.done(unlucky)
            assert (lucky.status, lucky.deaths) == (Status.COMPLETED, 1)
            assert (await q.done(good)).status is Status.COMPLETED
            kinds = [e.kind for e in await q.dispatcher.call(lambda s: s.events(bad.id))]
            assert [k for k in kinds if k in ("started", "requeued", "quarantined")] == [
                "started",
                "requeued",
                "started",
                "quarantined",
            ]

    play(test())


def test_a_job_without_progress_is_ended_by_the_watchdog(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, Limits(stall=1.5)) as q:
            hung, good = await q.submit(prompt("Hang")), await q.submit(prompt())
            job = await q.done(hung)
            assert job.status is Status.QUARANTINED
            assert job.error is not None
            assert "no progress for 1.5 s" in str(job.error["message"])
            assert (await q.done(good)).status is Status.COMPLETED

    play(test())


def test_cancel_a_running_a_waiting_and_a_finished_job(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            running, waiting = await q.submit(prompt("Wait", seconds=60)), await q.submit(prompt())
            await q.heard("progress")
            assert await q.dispatcher.cancel(waiting.id)
            assert await q.dispatcher.cancel(running.id)
            assert (await q.done(running)).status is Status.CANCELLED
            assert (await q.done(waiting)).status is Status.CANCELLED
            assert not await q.dispatcher.cancel(running.id)
            assert not await q.dispatcher.interrupt()
            again = await q.dispatcher.retry(waiting.id)
            q.notices.clear()
            assert (await q.done(again)).status is Status.COMPLETED

    play(test())


def test_a_job_that_will_not_stop_loses_its_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, Limits(cancel=1.0)) as q:
            job = await q.submit(prompt("Hang"))
            await q.until(
                lambda: any(n.kind == "node_started" and n.payload["node"] == "2" for n in q.notices)
            )
            assert await q.dispatcher.interrupt(job.id)
            assert (await q.done(job)).status is Status.CANCELLED
            assert (await q.done(await q.submit(prompt()))).status is Status.COMPLETED

    play(test())


def test_a_paused_queue_starts_nothing_until_it_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, paused=True) as q:
            job = await q.submit(prompt())
            await q.heard("worker")
            await asyncio.sleep(0.3)
            assert not any(n.kind == "started" for n in q.notices)
            await q.dispatcher.pause(False)
            assert (await q.done(job)).status is Status.COMPLETED

    play(test())


def test_a_restart_runs_what_was_left(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            running = await q.submit(prompt("Wait", seconds=60))
            others = [await q.submit(prompt()) for _ in range(3)]
            await q.heard("progress")
        async with queue(tmp_path) as q:
            await q.until(lambda: bool(q.dispatcher.running))
            assert [*q.dispatcher.running] == [running.id]
            assert q.dispatcher.running[running.id].job.claims == 2
            await q.dispatcher.cancel(running.id)
            for job in others:
                assert (await q.done(job)).status is Status.COMPLETED

    play(test())


def test_a_worker_that_cannot_start_leaves_jobs_waiting(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, factory="broken") as q:
            job = await q.submit(prompt())
            async with asyncio.timeout(20):
                while "error" not in q.dispatcher.worker_info:
                    await asyncio.sleep(0.05)
            assert "could not start" in str(q.dispatcher.worker_info["error"])
            assert (await q.dispatcher.call(lambda s: s.get(job.id))).status is Status.PENDING

    play(test())


def test_a_worker_that_cannot_follow_its_settings_says_why_in_a_sentence(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, factory="refusing") as q:
            async with asyncio.timeout(20):
                while "error" not in q.dispatcher.worker_info:
                    await asyncio.sleep(0.05)
            said = "the worker could not start: there is no usable CUDA device"
            assert q.dispatcher.worker_info["error"] == said
            assert said + "\n" in q.log and "Traceback" not in "".join(q.log)

    play(test())


def test_a_worker_that_cannot_be_started_for_want_of_descriptors_is_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        if sys.platform == "win32":
            pytest.skip("there is no such limit")
        import resource

        async with queue(tmp_path) as q:
            await q.done(await q.submit(prompt()))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            psutil.Process(int(str(q.dispatcher.worker_info["pid"]))).kill()
            await asyncio.sleep(0.3)
            resource.setrlimit(resource.RLIMIT_NOFILE, (8, hard))
            try:
                job = await q.submit(prompt())
                async with asyncio.timeout(20):
                    while "error" not in q.dispatcher.worker_info:
                        await asyncio.sleep(0.05)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert "could not start" in str(q.dispatcher.worker_info["error"])
            assert (await q.done(job)).status is Status.COMPLETED
            assert "error" not in q.dispatcher.worker_info

    play(test())


def test_a_listener_that_fails_does_not_stop_the_queue(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:

            def bad(notice: Notice) -> None:
                raise ValueError("not my day")

            q.dispatcher.listen(bad)
            for _ in range(2):
                assert (await q.done(await q.submit(prompt()))).status is Status.COMPLETED

    play(test())


def test_a_fault_of_the_servers_own_costs_the_job_and_not_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            bad = await q.submit(prompt("Wait", seconds=0.1))
            see = LiveJob.see

            def unlucky(live: LiveJob, message: Mapping[str, Any]) -> JobEvent | None:
                if live.job.id == bad.id and message["kind"] == "progress":
                    raise ZeroDivisionError("a fault")
                return see(live, message)

            monkeypatch.setattr(LiveJob, "see", unlucky)
            good = await q.submit(prompt())
            assert (await q.done(good)).status is Status.COMPLETED
            job = await q.dispatcher.call(lambda s: s.get(bad.id))
            assert job.status is Status.QUARANTINED
            assert job.error is not None and "a fault" in str(job.error["message"])

    play(test())


def test_a_result_waits_for_a_locked_file_and_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.jobs.database.BUSY_MILLISECONDS", 200)
    monkeypatch.setattr("loraloom.jobs.dispatcher._DISK_RETRY_SECONDS", 0.2)

    async def test() -> None:
        async with queue(tmp_path) as q:
            job = await q.submit(prompt("Wait", seconds=0.3))
            await q.heard("progress")
            other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.timeout(20):
                while "cannot be used" not in str(q.dispatcher.worker_info.get("error")):
                    await asyncio.sleep(0.05)
            known = await q.dispatcher.read(lambda s: s.get(job.id))
            assert known.status is Status.RUNNING
            other.execute("ROLLBACK")
            other.close()
            assert (await q.done(job)).claims == 1
            assert len([*(tmp_path / "output").iterdir()]) == 1

    play(test())


def test_a_pause_outlasts_the_server(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path) as q:
            await q.dispatcher.pause(True)
        async with queue(tmp_path) as q:
            assert q.dispatcher.paused
            await q.dispatcher.pause(False)
        async with queue(tmp_path) as q:
            assert not q.dispatcher.paused

    play(test())


def test_the_end_of_a_job_is_not_to_be_seen_before_it_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.jobs.database.BUSY_MILLISECONDS", 200)
    monkeypatch.setattr("loraloom.jobs.dispatcher._DISK_RETRY_SECONDS", 0.2)

    async def test() -> None:
        async with queue(tmp_path) as q:
            job = await q.submit(prompt("Wait", seconds=0.3))
            await q.heard("progress")
            other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.timeout(20):
                while "cannot be used" not in str(q.dispatcher.worker_info.get("error")):
                    await asyncio.sleep(0.05)
            assert "completed" not in [e.kind for e in q.dispatcher.running[job.id].events]
            other.close()
            await q.done(job)

    play(test())


def test_the_time_limit_of_jobs_is_not_that_of_the_workers_start(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, Limits(stall=0.5), factory="slow") as q:
            assert (await q.done(await q.submit(prompt()))).status is Status.COMPLETED
        async with queue(tmp_path, Limits(start=0.2), factory="slow") as q:
            async with asyncio.timeout(20):
                while "error" not in q.dispatcher.worker_info:
                    await asyncio.sleep(0.05)
            said = str(q.dispatcher.worker_info["error"])
            assert "within 0.2 s" in said and "memory" not in said

    play(test())


def test_the_worker_does_not_see_the_servers_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORALOOM_TOKEN", "secret-token")

    async def test() -> None:
        async with queue(tmp_path) as q:
            await q.heard("worker")
            assert "LORALOOM_TOKEN" not in str(q.dispatcher.worker_info["environment"])
            assert "PATH" in str(q.dispatcher.worker_info["environment"])

    play(test())


def test_cancelling_all_waits_for_few_commits(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, paused=True) as q:
            jobs = [await q.submit(prompt()) for _ in range(20)]
            assert set(await q.dispatcher.cancel_waiting()) == {job.id for job in jobs}
            assert len([n for n in q.notices if n.kind == "cancelled"]) == 20
            assert await q.dispatcher.cancel_waiting([jobs[0].id, "nobody"]) == []

    play(test())


def test_a_full_disk_is_said_and_over_when_there_is_space(tmp_path: Path) -> None:
    def limit(store: Store, pages: int) -> None:
        store._db.execute(f"PRAGMA max_page_count = {pages}")  # pyright: ignore[reportPrivateUsage]

    async def test() -> None:
        async with queue(tmp_path, paused=True) as q:
            job = await q.submit(prompt())
            await q.dispatcher.call(lambda s: limit(s, 1))
            with pytest.raises(DiskFull):
                for _ in range(50):
                    await q.submit(prompt("Number", value=1), filling="x" * 2000)
            await q.dispatcher.call(lambda s: limit(s, 1 << 30))
            await q.dispatcher.pause(False)
            assert (await q.done(job)).status is Status.COMPLETED

    play(test())
