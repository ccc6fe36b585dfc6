"""What other threads have found, brought to the event loop many at once.

Waking the loop is a call of the system, after which the thread has to wait for the interpreter again: a
commit of 64 jobs wakes it once instead of 64 times.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")
_Waiter: TypeAlias = "asyncio.Future[Future[Any]]"


class Arrivals:
    """For one event loop."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[_Waiter, Future[Any]]] = deque()
        self._told = False

    async def of(self, future: Future[Result]) -> Result:
        """The result of a future, or what it raised. Who gives up waiting cancels it, unless it has begun."""
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()

        def done(found: Future[Any]) -> None:
            self._arrived.append((waiter, found))
            if not self._told and not loop.is_closed():
                self._told = True
                loop.call_soon_threadsafe(self._deliver)

        future.add_done_callback(done)
        try:
            return (await waiter).result()
        except asyncio.CancelledError:
            future.cancel()
            raise

    def _deliver(self) -> None:
        # First, so that what arrives from now on tells anew.
        self._told = False
        while self._arrived:
            waiter, found = self._arrived.popleft()
            if not waiter.done():
                waiter.set_result(found)
