"""What the head does as machines come and go, without any."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from loraloom.cluster.head import REST_SECONDS, ClusterSettings, Head, lanes_of
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Request, Status
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


def test_a_server_without_a_cluster_imports_nothing_of_it() -> None:
    code = (
        "import sys, loraloom.cli.serve, loraloom.server.run, loraloom.session\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'ray' or m.startswith('loraloom.cluster')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
