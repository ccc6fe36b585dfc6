"""The queue's file: opened, checked, told apart from other files, or moved aside."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from loraloom.atomic_file import make_folder, rename
from loraloom.errors import DiskFull, InputError, LoraloomError
from loraloom.jobs.schema import APPLICATION_ID, MIGRATIONS, migrate

BUSY_MILLISECONDS = 5000
LONGEST_LOG_PAGES = 8000  # of 4 KiB
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_OURS = {"jobs", "events"}
_ASIDE = (
    "Start once with --new-queue to keep it under another name and begin with an empty queue; pictures are "
    "not in it."
)


class QueueFileError(InputError):
    """The queue's file cannot be used; the text says why and what to do."""


class QueueUnavailable(LoraloomError):
    """The queue's file cannot be used at the moment: it is locked, or the disk fails."""


def unavailable(error: sqlite3.DatabaseError) -> LoraloomError | None:
    """What to tell whoever asked for something that SQLite could not do now; None for a fault of ours."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"the queue cannot be written ({error}); free some space on that disk")
    if code in _PASSING:
        return QueueUnavailable(f"the queue's file cannot be used at the moment ({error}); try again")
    return None


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The file, checked and brought up to date; made when it is not there. Every commit is flushed.

    Raises QueueFileError for a file that is damaged, of a newer version, or of another program, and for one
    that cannot be read or written.
    """
    try:
        make_folder(path.parent)
        database = _connect(path)
        try:
            _check(database, path)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute(f"PRAGMA wal_autocheckpoint = {LONGEST_LOG_PAGES}")
            database.execute("PRAGMA foreign_keys = ON")
            migrate(database)
        except BaseException:
            database.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise QueueFileError(_explained(path, error)) from error
    return database


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A further connection to a file that is open for writing; readers and the writer do not wait for each
    other."""
    database = _connect(path)
    database.execute("PRAGMA query_only = ON")
    return database


def move_aside(path: Path) -> Path | None:
    """Give the file another name, with what belongs to it; the new name, None when there is no file."""
    if not path.exists():
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.{stamp}")
    count = 0
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.{stamp}-{count}")
    # The log first: a crash in between must not leave it beside a new file.
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            rename(part, target.with_name(target.name + suffix))
    return target


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    # A text that is no UTF-8 must not make its row unreadable.
    database.text_factory = lambda data: data.decode("utf-8", "replace")
    database.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    return database


def _check(database: sqlite3.Connection, path: Path) -> None:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    tables = {str(row[0]) for row in rows}
    (application,) = database.execute("PRAGMA application_id").fetchone()
    if application not in (0, APPLICATION_ID) or (tables and not tables >= _OURS):
        raise QueueFileError(f"{path} is a database of another program, not Loraloom's queue. {_ASIDE}")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise QueueFileError(
            f"the queue file {path} was written by a newer version of Loraloom (format {version}, this one "
            f"knows {len(MIGRATIONS)}). Use that version, or another --user-dir. {_ASIDE}"
        )
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise QueueFileError(f"the queue file {path} is damaged ({verdict}). {_ASIDE}")


def _explained(path: Path, error: sqlite3.Error | OSError) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"the queue file {path} is damaged ({error}). {_ASIDE}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"the queue file {path} is held by another program ({error}); end that one first"
    if code == sqlite3.SQLITE_FULL:
        return f"the disk is full: the queue file {path} cannot be written ({error})"
    return (
        f"the queue file {path} cannot be opened ({error}); expected a file that this user may read and "
        f"write. {_ASIDE}"
    )
