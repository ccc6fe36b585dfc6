"""Every single step of a job's life on disk fails once, and the power goes after every one."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loraloom.atomic_file import write_file
from loraloom.errors import LoraloomError
from loraloom.jobs.job import Request, Status
from loraloom.jobs.store import Store
from loraloom.runtime.output_files import OutputFolder

CONTENT = b"a picture" * 1000
CALLS = ("open", "write", "fsync", "mkdir", "link", "replace", "rename", "unlink", "close")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Faults:
    """Counts the calls that change a disk; the one with the number `at` fails."""

    def __init__(self, at: int, code: int) -> None:
        self.at, self.code, self.count, self.failed = at, code, 0, ""

    @contextmanager
    def injected(self, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._failing(name, getattr(os, name)))
            yield

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if name == "close" or (name == "open" and not args[1] & WRITING):
                return real(*args, **more)
            self.count += 1
            if self.count == self.at:
                self.failed = name
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **more)

        return call


def pictures(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix == ".png"]


def life(folder: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A job from its submission to its end; whether it succeeded, with a fault on the way."""
    store = Store(folder / "queue.db")
    try:
        store.submit(Request({}), job_id="a")
        assert store.claim() is not None
        try:
            with faults.injected(monkeypatch):
                write_file(folder / "user/default/settings.json", CONTENT)
                write_file(folder / "user/default/settings.json", CONTENT + b"2")
                saved = OutputFolder(folder / "output").save("x/y/rose", ".png", CONTENT)
        except LoraloomError as error:
            said = {"message": str(error)}
            store.change("a", lambda j: j.fail(1.0, {**said}), [("failed", {**said})])
            return False
        assert saved.path.read_bytes() == CONTENT
        store.change("a", lambda j: j.succeed(1.0, {"outputs": {"9": saved.as_ui()}}), [("completed", {})])
        return True
    finally:
        store.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_whichever_step_fails_no_file_is_half_there(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    for at in range(1, 200):
        folder = tmp_path / str(at)
        folder.mkdir()
        faults = Faults(at, code)
        succeeded = life(folder, faults, monkeypatch)
        if not faults.failed:
            assert succeeded and at > 20
            break
        seen.add(faults.failed)
        assert all(content == CONTENT for content in pictures(folder))
        settings = folder / "user/default/settings.json"
        assert not settings.exists() or settings.read_bytes() in (CONTENT, CONTENT + b"2")
        store = Store(folder / "queue.db")
        job = store.get("a")
        assert job.status is (Status.COMPLETED if succeeded else Status.FAILED)
        store.close()
        if faults.failed != "unlink":
            assert [*folder.rglob("*.part")] == []
        # The same again, on a disk that works, succeeds.
        assert OutputFolder(folder / "output").save("x/y/rose", ".png", CONTENT).path.read_bytes() == CONTENT
    else:
        raise AssertionError("there is no end of it")
    assert {"open", "write", "fsync", "mkdir", "link", "replace", "unlink"} <= seen


STEPS: tuple[Callable[[Store], object], ...] = (
    lambda s: s.submit(Request({"1": {}}, webhook="http://h/"), job_id="a"),
    lambda s: s.submit(Request({"2": {}}), job_id="b", front=True),
    lambda s: s.set_setting("paused", True),
    lambda s: s.claim(),
    lambda s: s.change("b", lambda j: j.worker_died(1.0, "x"), [("requeued", {"n": 1})]),
    lambda s: s.claim(),
    lambda s: s.change("b", lambda j: j.succeed(2.0, {"outputs": {"9": "y" * 5000}}), [("completed", {})]),
    lambda s: s.cancel_waiting(None, 100),
    lambda s: s.warn("a", "the webhook was refused"),
    lambda s: s.delete(["b"]),
)


def state(database: sqlite3.Connection) -> list[Any]:
    tables = ("jobs", "events", "deliveries", "settings")
    shown = "id, number, status, claims, deaths, result, error, ended"
    columns = {"jobs": shown, "events": "job, sequence, kind, payload", "deliveries": "job, url"}
    return [database.execute(f"SELECT {columns.get(t, '*')} FROM {t}").fetchall() for t in tables]


def test_a_step_that_is_broken_off_anywhere_has_no_effect(tmp_path: Path) -> None:
    store = Store(tmp_path / "queue.db")
    database = store._db  # pyright: ignore[reportPrivateUsage]
    for number, step in enumerate(STEPS):
        broken = 0
        for at in range(1, 100_000, 1 if number < 3 else 3):
            before, left = state(database), [at]

            def interrupt(left: list[int] = left) -> int:
                left[0] -= 1
                return left[0] == 0

            database.set_progress_handler(interrupt, 1)
            try:
                with store.transaction():
                    step(store)
            except sqlite3.OperationalError:
                database.set_progress_handler(None, 1)
                assert not store.in_transaction
                if state(database) != before:
                    break  # it was broken off when it was committed already
                broken += 1
            else:
                database.set_progress_handler(None, 1)
                break
        assert broken > 3, number
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()


def test_when_the_power_goes_all_that_was_flushed_is_there(tmp_path: Path) -> None:
    """What comes behind the flushed part of the log may be cut, lost in part, or nonsense."""
    path, log = tmp_path / "queue.db", tmp_path / "queue.db-wal"
    store = Store(path)
    database = store._db  # pyright: ignore[reportPrivateUsage]
    database.execute("PRAGMA wal_autocheckpoint = 0")
    flushed = [(log.stat().st_size, state(database))]
    for step in STEPS:
        step(store)
        flushed.append((log.stat().st_size, state(database)))
    main, whole = path.read_bytes(), log.read_bytes()
    rng, checked = random.Random(1), 0
    for (size, before), (end, after) in zip(flushed, flushed[1:], strict=False):
        for cut in {size, *(rng.randrange(size, end + 1) for _ in range(12)), end}:
            tails = (b"", bytes(end - cut), rng.randbytes(end - cut))
            for tail in tails:
                checked += 1
                folder = tmp_path / f"loss{checked}"
                folder.mkdir()
                (folder / "queue.db").write_bytes(main)
                (folder / "queue.db-wal").write_bytes(whole[:cut] + tail)
                again = Store(folder / "queue.db")
                found = state(again._db)  # pyright: ignore[reportPrivateUsage]
                again.close()
                assert found in ((after,) if cut == end else (before, after))
                shutil.rmtree(folder)
    store.close()
    assert checked > 200
