"""Brings what is committed from SQLite's write-ahead log into the file, while commits go on.

SQLite does so itself within every commit that finds a long log: the clients who share that commit wait for
two flushes more, of pages from all over the file. Here a thread of its own does it, and the writer's
connection only when this one does not keep up (`database.LONGEST_LOG_PAGES`).
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

from loraloom.jobs.database import open_for_reading

_COMMITS = 50


class Checkpoints:
    """For one file, which somebody else has open for writing."""

    def __init__(self, path: Path) -> None:
        self._commits, self._over, self._due = 0, False, threading.Event()
        # Not writing of its own, this connection may copy the log all the same.
        self._db = open_for_reading(path)
        self._thread = threading.Thread(target=self._work, name="loraloom-checkpoints", daemon=True)
        self._thread.start()

    def committed(self) -> None:
        """Something was committed."""
        self._commits += 1
        if self._commits % _COMMITS == 0:
            self._due.set()

    def close(self) -> None:
        self._over = True
        self._due.set()
        self._thread.join()
        self._db.close()

    def _work(self) -> None:
        while self._due.wait() and not self._over:
            self._due.clear()
            # What fails now, for a lock or a full disk, stands in the log and is tried again later.
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
