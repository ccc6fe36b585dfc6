"""What the head does as machines come and go, without any."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from loraloom.cluster import head as head_module
from loraloom.cluster.head import REST_SECONDS, ClusterSettings, Head, lanes_of
from loraloom.cluster.remote_worker import RemoteWorker
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Request, Status
from loraloom.jobs.notices import Notice
from loraloom.jobs.publishing import Places
from loraloom.jobs.writer import StoreThread
from loraloom.workflow.graph import JSON

NODE: dict[str, Any] = {
    "id": "0123456789",
    "address": "10.0.0.6",
    "host": "blue",
    "workers": 2,
    "gpus": 0.0,
    "memory": 0.0,
}


class Recorded(Head):
    """Keeps the orders that a driver would get, and plays the driver."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.orders: list[Mapping[str, JSON]] = []

    def _send(self, order: Mapping[str, JSON]) -> None:
        self.orders.append(order)

    async def say(self, **message: Any) -> None:
        await self._heard(message, b"")

    async def lose_driver(self) -> None:
        await self._without_nodes()

    @property
    def started(self) -> list[str]:
        return [str(order["worker"]) for order in self.orders if order["order"] == "start"]

    def jobs(self) -> dict[str, str]:
        """The job that each worker runs."""
        lanes = [*self.dispatcher.lanes.values()]
        workers = [cast("RemoteWorker", lane.keeper.worker).name for lane in lanes]
        return {name: live.job.id for name, lane in zip(workers, lanes, strict=True) if (live := lane.live)}

    async def ready(self, count: int) -> None:
        await until(lambda: len(self.started) == count)
        for worker in self.started:
            said = {"kind": "ready", "worker": {}, "declared": None}
            await self.say(kind="said", worker=worker, message=said, files=[])


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def play(folder: Path, test: Callable[[Recorded], Coroutine[Any, Any, None]], most: int = 0) -> None:
    async def run() -> None:
        store = StoreThread(folder / "queue.db", max_pending=10, max_finished=10)
        dispatcher = Dispatcher(store, [], log=lambda text: None)
        places = Places(folder / "staging", folder / "output")
        settings = ClusterSettings(
            "10.0.0.5:6379", "a:b", {}, places, folder / "temp", most=most, log=lambda text: None
        )
        await dispatcher.start()
        try:
            await test(Recorded(settings, dispatcher))
        finally:
            await dispatcher.stop()
            store.close()

    asyncio.run(run())


def test_a_node_brings_workers_and_takes_them_away(tmp_path: Path) -> None:
    async def test(head: Recorded) -> None:
        await head.say(kind="ready")
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        assert [*head.dispatcher.lanes] == lanes_of(NODE) == ["blue-456789/0", "blue-456789/1"]
        job = await head.dispatcher.submit(Request({}))
        await until(lambda: head.dispatcher.running)
        await head.say(kind="nodes", nodes=[])
        assert not head.dispatcher.lanes
        found = await head.dispatcher.read(lambda s: s.get(job.id))
        assert (found.status, found.losses, found.deaths) == (Status.PENDING, 1, 0)

    play(tmp_path, test)


def test_what_comes_of_workers_that_have_ended_is_thrown_away(tmp_path: Path) -> None:
    async def test(head: Recorded) -> None:
        await head.say(kind="ready")
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        await head.say(kind="nodes", nodes=[])
        for name in ("one.part", "two.part"):
            (tmp_path / name).write_bytes(b"x")
            said = {"kind": "node_finished", "job": "j", "node": "1", "ui": {}}
            entry = {"type": "output", "filename": "a.png", "subfolder": ""}
            files = [(entry, str(tmp_path / name))]
            await head.say(kind="said", worker=head.started[0], message=said, files=files)
        assert not [*tmp_path.glob("*.part")]

    play(tmp_path, test)


def test_a_node_may_leave_while_its_workers_are_let_go(tmp_path: Path) -> None:
    async def test(head: Recorded) -> None:
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        long_ago = time.monotonic() + 2 * REST_SECONDS
        await asyncio.gather(head.scale(0, long_ago), head.say(kind="nodes", nodes=[]), head.lose_driver())
        assert not head.dispatcher.lanes
        await head.scale(1, long_ago + 1)
        await head.say(kind="nodes", nodes=[NODE])
        assert [*head.dispatcher.lanes] == lanes_of(NODE)

    play(tmp_path, test, most=4)


def test_without_its_driver_the_head_gives_every_job_to_others(tmp_path: Path) -> None:
    async def test(head: Recorded) -> None:
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        job = await head.dispatcher.submit(Request({}))
        await until(lambda: head.dispatcher.running)
        await head.lose_driver()
        found = await head.dispatcher.read(lambda s: s.get(job.id))
        assert (found.status, found.losses) == (Status.PENDING, 1)
        await head.say(kind="nodes", nodes=[{**NODE, "id": "9876543210"}])
        assert [*head.dispatcher.lanes] == ["blue-543210/0", "blue-543210/1"]

    play(tmp_path, test)


def test_a_worker_that_was_drained_stays_so_when_the_driver_comes_back(tmp_path: Path) -> None:
    async def test(head: Recorded) -> None:
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        first, second = lanes_of(NODE)
        head.dispatcher.drain(first, True)
        await head.lose_driver()
        await head.say(kind="nodes", nodes=[NODE])
        assert [lane.draining for lane in head.dispatcher.lanes.values()] == [True, False]
        head.dispatcher.drain(first, False)
        assert not head.dispatcher.lanes[first].draining and second in head.dispatcher.lanes

    play(tmp_path, test)


def test_workers_are_wanted_as_there_are_jobs_and_rest_when_there_are_none(tmp_path: Path) -> None:
    async def test(head: Recorded) -> None:
        now = time.monotonic()
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        for jobs, later in ((3, 0.0), (9, 1.0), (9, 2.0), (0, 3.0)):
            await head.scale(jobs, now + later)
        assert [order["workers"] for order in head.orders if order["order"] == "want"] == [3, 4, 0]
        assert len(head.dispatcher.lanes) == 2
        await head.scale(0, now + 3 + REST_SECONDS)
        assert not head.dispatcher.lanes
        await head.scale(1, now + 4 + REST_SECONDS)
        assert [*head.dispatcher.lanes] == lanes_of(NODE)

    play(tmp_path, test, most=4)


def test_a_head_that_starts_anew_with_other_workers_runs_what_the_former_left(tmp_path: Path) -> None:
    async def former(head: Recorded) -> None:
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        for name in ("a", "b", "c"):
            await head.dispatcher.submit(Request({}), job_id=name)
        await until(lambda: len(head.dispatcher.running) == 2)

    async def test(head: Recorded) -> None:
        await head.say(kind="nodes", nodes=[{**NODE, "id": "abcdef", "host": "red", "workers": 1}])
        await head.ready(1)
        for _ in range(3):
            await until(lambda: head.dispatcher.running)
            (job,) = head.dispatcher.running
            said = {"kind": "completed", "job": job, "executed": []}
            await head.say(kind="said", worker=head.started[0], message=said, files=[])
            await until(lambda job=job: job not in head.dispatcher.running)
        jobs = await head.dispatcher.read(lambda s: s.jobs([*Status]))
        assert {job.id: (job.status, job.deaths, job.losses) for job in jobs} == dict.fromkeys(
            "abc", (Status.COMPLETED, 0, 0)
        )
        assert {job.place for job in jobs} == {"red-abcdef/0"}

    play(tmp_path, former)
    play(tmp_path, test)


def test_while_the_queue_is_locked_by_somebody_else_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result and the loss of a machine come while nothing can be written, for longer than SQLite waits."""
    monkeypatch.setattr("loraloom.jobs.database.BUSY_MILLISECONDS", 300)

    async def test(head: Recorded) -> None:
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        for name in ("a", "b"):
            await head.dispatcher.submit(Request({}), job_id=name)
        await until(lambda: len(head.dispatcher.running) == 2)
        first, second = head.started
        own = head.jobs()
        other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        said = {"kind": "completed", "job": own[first], "executed": []}
        await head.say(kind="said", worker=first, message=said, files=[])
        leaving = asyncio.create_task(head.say(kind="nodes", nodes=[]))
        await asyncio.sleep(1.5)
        assert not leaving.done()
        other.execute("ROLLBACK")
        other.close()
        await leaving
        assert not head.dispatcher.lanes
        jobs = await head.dispatcher.read(lambda s: {j.id: j for j in s.jobs([*Status])})
        assert jobs[own[first]].status is Status.COMPLETED
        assert (jobs[own[second]].status, jobs[own[second]].losses) == (Status.PENDING, 1)

    play(tmp_path, test)


def test_a_driver_that_stands_still_costs_no_job_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.cluster.remote_worker._UNHEARD_SECONDS", 0.2)

    async def test(head: Recorded) -> None:
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        job = await head.dispatcher.submit(Request({}))
        await until(lambda: head.dispatcher.running)
        await asyncio.sleep(0.3)
        for lane in head.dispatcher.lanes.values():
            await lane.keeper.kill()  # as a lane does whose worker gave no sign of life for too long
        await until(lambda: not head.dispatcher.running)
        found = await head.dispatcher.read(lambda s: s.get(job.id))
        assert (found.losses, found.deaths) == (1, 0)

    play(tmp_path, test)


def test_every_job_has_its_own_events_in_order_and_its_webhook(tmp_path: Path) -> None:
    """Two jobs whose workers talk at the same time, also one that was told to stop."""

    async def test(head: Recorded) -> None:
        heard: list[Notice] = []
        head.dispatcher.listen(heard.append)
        await head.say(kind="nodes", nodes=[NODE])
        await head.ready(2)
        for name in ("a", "b"):
            await head.dispatcher.submit(Request({}, webhook=f"http://127.0.0.1/{name}"), job_id=name)
        await until(lambda: len(head.dispatcher.running) == 2)
        worker = {job: name for name, job in head.jobs().items()}

        async def say(job: str, kind: str, **more: Any) -> None:
            message = {"kind": kind, "job": job, "node": "1", "display": "1", **more}
            await head.say(kind="said", worker=worker[job], message=message, files=[])

        for value in (1, 2):
            for job in ("a", "b"):
                await say(job, "progress", value=value, max=9)
        await until(lambda: len([n for n in heard if n.kind == "progress"]) == 4)
        assert await head.dispatcher.cancel("b")
        await say("b", "progress", value=3, max=9)
        await say("b", "cancelled", executed=[])
        await say("b", "progress", value=4, max=9)
        made = {"parent": None, "class_type": "X", "cached": False, "ui": {"text": ["a"]}}
        await say("a", "node_finished", **made)
        await say("a", "completed", executed=["1"])
        await until(lambda: not head.dispatcher.running)
        told: dict[str, list[Any]] = {"a": [], "b": []}
        for notice in heard:
            if notice.job is not None and notice.kind not in ("queue", "worker"):
                told[notice.job.id].append(notice.payload.get("value", notice.kind))
        assert told == {
            "a": ["started", 1, 2, "node_finished", "completed"],
            "b": ["started", 1, 2, 3, "cancelled"],
        }
        due = await head.dispatcher.read(lambda s: s.due_deliveries(time.time()))
        assert {(job, url) for job, url, _ in due} == {(j, f"http://127.0.0.1/{j}") for j in ("a", "b")}
        cancels: list[Any] = [order["message"] for order in head.orders if order["order"] == "to"]
        assert [m for m in cancels if m["order"] == "cancel"] == [{"order": "cancel", "job": "b"}]

    play(tmp_path, test)


def test_a_driver_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_TICK_SECONDS", 0.05)
    receive = head_module._receive  # pyright: ignore[reportPrivateUsage]

    async def test() -> None:
        with pytest.raises(TimeoutError, match="said nothing"):
            await receive(asyncio.StreamReader(), 4)
        ended = asyncio.StreamReader()
        ended.feed_eof()
        assert await receive(ended, 4) is None

    asyncio.run(test())


def test_a_server_without_a_cluster_imports_nothing_of_it() -> None:
    code = (
        "import sys, loraloom.cli.serve, loraloom.server.run, loraloom.session\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'ray' or m.startswith('loraloom.cluster')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
