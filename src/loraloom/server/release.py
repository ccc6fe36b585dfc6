"""Memory that a large request needed goes back to the system, and what stays is not looked through again.

Python and the C library keep what was freed for the next time: 15 MB of JSON leave ten times as much behind.
"""

from __future__ import annotations

import asyncio
import gc

from loraloom import heap

LARGE_BYTES = 1 << 20
_PAUSE_SECONDS = 1.0


class Release:
    """Gives memory back once the large requests of a moment are over."""

    def __init__(self) -> None:
        self._due: asyncio.TimerHandle | None = None

    def after(self, size: int) -> None:
        """A body of so many bytes was read."""
        if size < LARGE_BYTES:
            return
        if self._due is not None:
            self._due.cancel()
        self._due = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._begin)

    def _begin(self) -> None:
        self._due = None
        asyncio.get_running_loop().run_in_executor(None, _give_back)


RELEASE = Release()


def keep_for_good() -> None:
    """What is there now stays to the server's end: it is not looked through for garbage any more, for which
    all requests would wait, 30 ms some times a second when many come."""
    gc.collect()
    gc.freeze()


def _give_back() -> None:
    gc.collect()
    heap.give_back()
