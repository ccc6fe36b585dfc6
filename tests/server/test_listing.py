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
        dispatcher.changes += 1
        assert (await listing.json() is None) == (count == 40)
        store.close()

    asyncio.run(test())
