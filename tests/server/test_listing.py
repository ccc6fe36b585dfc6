"""A queue that is too long to be held is listed part by part, and says the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Request
from loraloom.jobs.writer import StoreThread
from loraloom.server.listing import QueueListing


@pytest.mark.parametrize("count", [0, 1, 40])
def test_parts_and_the_whole_are_the_same(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        store = StoreThread(tmp_path / "queue.db", max_pending=100, max_finished=100)
        dispatcher = Dispatcher(store, [])
        listing = QueueListing(dispatcher)
        for number in range(count):
            request = Request({"1": {"class_type": "ü"}}, {"a": "x" * (number * 37)}, ("1",), "me")
            await dispatcher.submit(request, number=-number, priority=number % 3)
        if count > 1:
            await dispatcher.call(lambda s: (s.claim(), s.claim()))
        whole = await listing.json()
        assert whole is not None
        monkeypatch.setattr("loraloom.server.listing._PART", 1500)
        parts = [part async for part in listing.parts()]
        assert b"".join(parts) == whole
        assert len(parts) > 10 or count < 40
        assert len(json.loads(whole)["queue_pending"]) == max(0, count - 2 * (count > 1))
        monkeypatch.setattr("loraloom.server.listing._AT_ONCE", 1000)
        await dispatcher.call(lambda s: None)
        assert (await listing.json() is None) == (count == 40)
        store.close()

    asyncio.run(test())


def test_it_shows_all_that_is_committed_told_or_not(tmp_path: Path) -> None:
    """Such as a job that ended a moment ago, or waits again since the server was started."""

    async def test() -> None:
        store = StoreThread(tmp_path / "queue.db", max_pending=100, max_finished=100)
        dispatcher = Dispatcher(store, [])
        listing = QueueListing(dispatcher)

        async def counts() -> tuple[int, int]:
            said = json.loads(await listing.json() or b"")
            return len(said["queue_running"]), len(said["queue_pending"])

        await dispatcher.submit(Request({"1": {"class_type": "A"}}, {}, ("1",), "me"))
        assert await counts() == (0, 1)
        await dispatcher.call(lambda s: s.claim())
        assert await counts() == (1, 0)
        await dispatcher.call(lambda s: s.recover())
        assert await counts() == (0, 1)
        job = await dispatcher.call(lambda s: s.claim())
        assert await counts() == (1, 0)
        assert job is not None
        await dispatcher.call(lambda s: s.settle(job, lambda j: j.succeed(1.0, {})))
        assert await counts() == (0, 0)
        made = await listing.json()
        assert await listing.json() is made
        store.close()

    asyncio.run(test())
