"""Model files on their way into memory while there is something else to do.

A disk that has many requests at hand answers several times faster than one that gets them one after another:
the system is asked for the pages of a whole file, piece by piece. Of a file that is in memory already this
costs milliseconds.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PIECE = 2 << 20
"""Bytes that Linux takes of one request; of a longer one it forgets the rest."""


def read_ahead(paths: Iterable[Path]) -> threading.Thread:
    """Begin to read files, in order, in a thread; those that would not fit into half of what memory is
    available are left out. What cannot be read is said where it is opened."""

    def work() -> None:
        import psutil

        room = psutil.virtual_memory().available // 2
        for path in wanted:
            with suppress(OSError):
                size = path.stat().st_size
                if path.is_file() and size <= room:
                    room -= size
                    _ask_for(path, size)

    wanted = tuple(dict.fromkeys(paths))
    thread = threading.Thread(target=work, name="loraloom-reading-ahead", daemon=True)
    thread.start()
    return thread


def _ask_for(path: Path, size: int) -> None:
    if sys.platform == "linux":
        with path.open("rb") as file:
            for begin in range(0, size, _PIECE):
                os.posix_fadvise(file.fileno(), begin, _PIECE, os.POSIX_FADV_WILLNEED)
