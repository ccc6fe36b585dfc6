"""Which files the queue is opened on, and what is said of the others."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from loraloom.jobs.database import QueueFileError, move_aside
from loraloom.jobs.job import Request
from loraloom.jobs.schema import MIGRATIONS
from loraloom.jobs.store import Store


def _filled(path: Path) -> None:
    store = Store(path)
    for count in range(200):
        store.submit(Request({"1": {"class_type": "X" * 200, "inputs": {"n": count}}}))
    store.close()


def test_a_file_that_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(QueueFileError, match="is damaged .*--new-queue"):
        Store(tmp_path / "queue.db")


def test_a_page_that_was_overwritten_is_found_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    _filled(path)
    with open(path, "r+b") as file:
        file.seek(4096 * 4)
        file.write(os.urandom(4096 * 6))
    with pytest.raises(QueueFileError, match="is damaged"):
        Store(path)


def test_a_file_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.commit()
    database.close()
    before = path.read_bytes()
    with pytest.raises(QueueFileError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    Store(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(QueueFileError, match="newer version"):
        Store(path)


def test_a_folder_in_the_files_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "queue.db").mkdir()
    with pytest.raises(QueueFileError, match="cannot be opened"):
        Store(tmp_path / "queue.db")


def test_a_file_is_moved_aside_with_its_log(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    assert move_aside(path) is None
    path.write_bytes(b"x")
    (tmp_path / "queue.db-wal").write_bytes(b"y")
    first = move_aside(path)
    path.write_bytes(b"z")
    second = move_aside(path)
    assert first is not None and second is not None and first != second
    assert first.read_bytes() == b"x"
    assert first.with_name(first.name + "-wal").read_bytes() == b"y"
    assert not path.exists() and not (tmp_path / "queue.db-wal").exists()
