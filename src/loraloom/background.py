"""Work beside the run, one thing after another, in a thread that is there only while it has something to do.

A thread that has computed with PyTorch keeps a team of OpenMP threads until it ends. While there are more of
them than processors, all teams fall asleep between two operations instead of waiting for the next, and the
small operations of a run take two to three times as long. So no thread that computes stays for later.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

LOWEST_PRIORITY = 19
"""Of Unix: gets what others leave."""


class Background:
    """Runs what it is given in order, at the lowest priority that the system has for a thread.

    name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: deque[tuple[Future[Any], Callable[[], None]]] = deque()
        self._lock = threading.Lock()
        self._closed = self._busy = False

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """What work(*arguments) will give. Raises RuntimeError once closed, and where the system has no
        thread for it."""
        future: Future[T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} takes nothing more")
            if not self._busy:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
                self._busy = True
            self._waiting.append((future, do))
        return future

    def close(self) -> None:
        """Begin nothing more; what waits is cancelled."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for future, _ in waiting:
            future.cancel()

    def _work(self) -> None:
        _yield_to_others()
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                _, do = self._waiting.popleft()
            do()


def _yield_to_others() -> None:
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
