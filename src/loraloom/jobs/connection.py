"""A connection to the queue's file: transactions that nest, parts that are undone alone, snapshots."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager


class Connection:
    """Not for several threads at once."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database
        self._inside = False

    def close(self) -> None:
        self._db.close()

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """Several calls that take effect together; nests."""
        if self._inside:
            yield
            return
        self._undo()  # what a rollback that failed itself has left
        self._inside = True
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._undone()
            self._undo()
            raise
        finally:
            self._inside = False

    @contextmanager
    def savepoint(self) -> Generator[None, None, None]:
        """Part of a transaction that is undone alone when it fails."""
        self._db.execute("SAVEPOINT part")
        try:
            yield
            self._db.execute("RELEASE part")
        except BaseException:
            self._undone()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK TO part")
                self._db.execute("RELEASE part")
            raise

    @contextmanager
    def snapshot(self) -> Generator[None, None, None]:
        """Several readings of one state of the file."""
        self._undo()
        try:
            self._db.execute("BEGIN")
            yield
        finally:
            self._undo()

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _undone(self) -> None:
        """Something is about to be undone: what is remembered of it beside the file is forgotten."""
