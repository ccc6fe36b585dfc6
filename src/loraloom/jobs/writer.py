"""The store's threads: calls that write wait in one line, those that only read in another.

A commit is a flush to the disk, which is what a queue spends its time on: calls that wait together share one,
so that 64 clients that submit at once wait for a handful of flushes instead of 64. Reading needs no
transaction of the writer's and goes on while the file is locked by somebody else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from loraloom.jobs.checkpoints import Checkpoints
from loraloom.jobs.store import Store

Result = TypeVar("Result")
_Call: TypeAlias = "tuple[Callable[[Store], Any], Future[Any]]"

_MAX_BATCH = 256
_READERS = 2


class StoreThread:
    """A store that any thread may call. Results come when they are committed."""

    def __init__(self, path: Path, *, max_pending: int, max_finished: int) -> None:
        self._stores = [Store(path, max_pending=max_pending, max_finished=max_finished)]
        self._checkpoints = Checkpoints(path)
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._questions: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = [self._thread("loraloom-store", self._write, self._stores[0])]
        for number in range(_READERS):
            self._stores.append(Store.reader(path))
            self._threads.append(self._thread(f"loraloom-reader-{number}", self._read, self._stores[-1]))

    def call(self, function: Callable[[Store], Result]) -> Future[Result]:
        """Run a function on the store; the future holds its result, or what it or its commit raised."""
        future: Future[Result] = Future()
        self._calls.put((function, future))
        return future

    def read(self, function: Callable[[Store], Result]) -> Future[Result]:
        """Run a function that only reads, on what is committed."""
        future: Future[Result] = Future()
        self._questions.put((function, future))
        return future

    def close(self) -> None:
        """Finish what waits and close the file."""
        for _ in range(_READERS):
            self._questions.put(None)
        self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._checkpoints.close()
        for store in reversed(self._stores):
            store.close()

    @staticmethod
    def _thread(name: str, work: Callable[[Store], None], store: Store) -> threading.Thread:
        thread = threading.Thread(target=work, args=(store,), name=name, daemon=True)
        thread.start()
        return thread

    # What a call gave is let go of before the next one is waited for: it may be large.

    def _read(self, store: Store) -> None:
        while (call := self._questions.get()) is not None:
            _answered(store, *call)
            del call

    def _write(self, store: Store) -> None:
        while _batch_done(store, self._calls):
            self._checkpoints.committed()


def _answered(store: Store, function: Callable[[Store], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        with store.snapshot():
            result = function(store)
    except Exception as error:  # noqa: BLE001 - belongs to the caller
        future.set_exception(error)
    else:
        future.set_result(result)


def _batch_done(store: Store, waiting: SimpleQueue[_Call | None]) -> bool:
    """Do what waits, together; whether there may be more."""
    batch = [waiting.get()]
    while len(batch) < _MAX_BATCH and not waiting.empty():
        batch.append(waiting.get())
    _together(store, [c for c in batch if c is not None and c[1].set_running_or_notify_cancel()])
    return None not in batch


def _together(store: Store, calls: list[_Call]) -> None:
    """Run calls in one transaction. Every future gets its answer, whatever fails."""
    outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
    try:
        with store.transaction():
            for function, future in calls:
                try:
                    with store.savepoint():
                        outcomes.append((future, function(store), None))
                except Exception as error:
                    if not store.in_transaction:
                        raise  # SQLite has undone the whole transaction, with the calls before this one
                    outcomes.append((future, None, error))
    except Exception as error:  # noqa: BLE001 - belongs to the callers: none of the calls took effect
        for _, future in calls:
            future.set_exception(error)
        return
    for future, result, error in outcomes:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
