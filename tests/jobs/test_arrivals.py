"""What other threads have found comes to the event loop many at once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest

from loraloom.jobs.arrivals import Arrivals


def test_each_gets_its_own_result_or_error_and_the_loop_is_woken_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        arrivals, loop, woken = Arrivals(), asyncio.get_running_loop(), list[object]()
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda f: (woken.append(f), wake(f)))
        futures = [Future[int]() for _ in range(64)]
        waiting = asyncio.gather(*(arrivals.of(f) for f in futures), return_exceptions=True)
        await asyncio.sleep(0)

        def finish() -> None:
            for number, future in enumerate(futures):
                future.set_exception(KeyError(number)) if number == 7 else future.set_result(number)

        # The loop does not run meanwhile, so that all have arrived before it looks.
        thread = threading.Thread(target=finish)
        thread.start()
        thread.join()
        found = await waiting
        assert found[:7] + found[8:] == [n for n in range(64) if n != 7]
        assert isinstance(found[7], KeyError)
        assert len(woken) == 1
        later = Future[str]()
        asked = asyncio.create_task(arrivals.of(later))
        await asyncio.sleep(0)
        later.set_result("later")
        assert await asked == "later"

    asyncio.run(test())


def test_who_gives_up_cancels_what_has_not_begun() -> None:
    async def test() -> None:
        arrivals, begun, waiting = Arrivals(), Future[int](), Future[int]()
        assert begun.set_running_or_notify_cancel()
        tasks = [asyncio.create_task(arrivals.of(f)) for f in (begun, waiting)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not begun.cancelled()
        assert not waiting.set_running_or_notify_cancel()
        begun.set_result(1)
        await asyncio.sleep(0)

    asyncio.run(test())


def test_a_result_for_a_loop_that_has_ended_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    future = Future[int]()

    async def leave() -> None:
        task = asyncio.create_task(Arrivals().of(future))
        await asyncio.sleep(0)
        del task

    assert future.set_running_or_notify_cancel()
    asyncio.run(leave())
    future.set_result(1)
    assert not caplog.records
