"""The store's thread: calls wait in line, and those that wait together share one commit.

A commit is a flush to the disk, which is what a queue spends its time on: 64 clients that submit at once
wait for a handful of flushes instead of 64.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from loraloom.jobs.store import Store

Result = TypeVar("Result")
_Call: TypeAlias = "tuple[Callable[[Store], Any], Future[Any]]"

_MAX_BATCH = 256


class StoreThread:
    """A store that any thread may call. Results come when they are committed."""

    def __init__(self, path: Path, *, max_pending: int, max_finished: int) -> None:
        self._store = Store(path, max_pending=max_pending, max_finished=max_finished)
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="loraloom-store", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[Store], Result]) -> Future[Result]:
        """Run a function on the store; the future holds its result, or what it raised."""
        future: Future[Result] = Future()
        self._calls.put((function, future))
        return future

    def close(self) -> None:
        """Finish what waits and close the file."""
        self._calls.put(None)
        self._thread.join()
        self._store.close()

    def _work(self) -> None:
        closing = False
        while not closing:
            batch = [self._calls.get()]
            while len(batch) < _MAX_BATCH and not self._calls.empty():
                batch.append(self._calls.get())
            closing = None in batch
            calls = [call for call in batch if call is not None]
            self._together(calls)

    def _together(self, calls: list[_Call]) -> None:
        done: list[tuple[Future[Any], Any]] = []
        try:
            with self._store.transaction():
                for function, future in calls:
                    if not future.set_running_or_notify_cancel():
                        continue
                    try:
                        with self._store.savepoint():
                            result = function(self._store)
                    except Exception as error:  # noqa: BLE001 - belongs to the caller
                        future.set_exception(error)
                    else:
                        done.append((future, result))
        except Exception as error:  # noqa: BLE001 - the commit failed: no call took effect
            for future, _ in done:
                future.set_exception(error)
            return
        for future, result in done:
            future.set_result(result)
