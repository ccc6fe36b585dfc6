"""Files are there whole or not at all, whatever goes wrong in between."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loraloom import atomic_file
from loraloom.atomic_file import move_file, part_file, write_file
from loraloom.errors import FileWriteError, PathTaken

NOBODY = 65534


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_with_its_folders_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.txt"
    write_file(path, b"one")
    write_file(path, (piece for piece in (b"tw", b"", b"o")))
    assert path.read_bytes() == b"two"
    assert names(path.parent) == {"c.txt"}


@pytest.mark.parametrize(("private", "mode"), [(False, 0o640), (True, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"x", private=private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o604)
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_through_a_link_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/target")
    for content in (b"made", b"replaced"):
        write_file(tmp_path / "link", content)
        assert (tmp_path / "far/target").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "far") == {"target"}


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("pipes are no files there")
    os.mkfifo(tmp_path / "pipe")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_file(tmp_path / "pipe", b"through")
    reader.join()
    assert found == [b"through"]
    assert names(tmp_path) == {"pipe"}


def test_the_file_is_flushed_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        said.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        said.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    write_file(tmp_path / "a", b"x")
    assert said == ["file", "replace", "folder"]


def _full_disk(_descriptor: int, _data: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _failing(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("call", "instead", "said"),
    [
        ("write", _full_disk, "free some space"),
        ("fsync", _failing, os.strerror(errno.EIO)),
        ("replace", _failing, os.strerror(errno.EIO)),
    ],
)
def test_what_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    instead: Callable[..., object],
    said: str,
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, instead)
    with pytest.raises(FileWriteError, match=said) as caught:
        write_file(path, b"new")
    monkeypatch.undo()
    assert str(path) in str(caught.value) and caught.value.exit_code == 2
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a"}


def test_a_piece_that_is_never_made_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", pieces())
    assert names(tmp_path) == set()


def test_a_file_system_that_cannot_flush_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_files_and_folders_in_the_way_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(PathTaken, match="folder of that name"):
        write_file(tmp_path / "folder", b"x")
    for under in ("file/a", "file/a/b"):
        with pytest.raises(PathTaken, match="where a folder is needed"):
            write_file(tmp_path / under, b"x")
    with pytest.raises(PathTaken, match="folder of that name"):
        move_file(tmp_path / "file", tmp_path / "folder")
    with pytest.raises(PathTaken), part_file(tmp_path / "file", b"x"):
        pass
    with pytest.raises(FileWriteError, match="shorter name"):
        write_file(tmp_path / ("n" * 300), b"x")
    (tmp_path / "ring").symlink_to("ring")
    with pytest.raises(FileWriteError, match="ring"):
        write_file(tmp_path / "ring", b"x")
    assert names(tmp_path) == {"folder", "file", "ring"}


@pytest.fixture
def bound_folder() -> Iterator[Path]:
    """An empty folder of a user whom permissions bind, which they do not bind root."""
    if sys.platform == "win32":
        pytest.skip("permissions are others there")
    with tempfile.TemporaryDirectory() as name:
        if root := os.geteuid() == 0:
            os.chown(name, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_is_read_only_stays_as_it_is(bound_folder: Path, which: str) -> None:
    path = bound_folder / "a"
    path.write_bytes(b"old")
    guarded = path if which == "file" else bound_folder
    guarded.chmod(guarded.stat().st_mode & ~0o222)
    try:
        with pytest.raises(FileWriteError, match="make that one writable"):
            write_file(path if which == "file" else bound_folder / "b", b"new")
    finally:
        guarded.chmod(0o755)
    assert path.read_bytes() == b"old"
    assert names(bound_folder) == {"a"}


def test_a_name_is_claimed_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with part_file(tmp_path, b"new") as part:
        assert not part.claim(tmp_path / "a")
        assert part.claim(tmp_path / "b")
    with part_file(tmp_path, b"unnamed"):
        pass
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old", "b": b"new"}


def _refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "no hard links on this file system")


def _claim(folder: Path, index: int, times: int) -> None:
    os.link = _refuse
    for count in range(times):
        with part_file(folder, str(index).encode()) as part:
            part.claim(folder / f"name-{count}")


def test_without_hard_links_a_name_still_goes_to_one_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_claim, args=(tmp_path, index, 40)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert names(tmp_path) == {f"name-{count}" for count in range(40)}
    assert all(path.read_bytes() in (b"0", b"1") for path in tmp_path.iterdir())


def test_a_file_that_a_program_has_open_for_a_moment_is_replaced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, replace = [2], os.replace

    def busy(old: Path, new: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "the file is open in another program")
        replace(old, new)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(FileWriteError, match="another program"):
        write_file(tmp_path / "a", b"x")
    left[0] = 2
    monkeypatch.setattr(atomic_file, "_ATTEMPTS", 3)
    monkeypatch.setattr(atomic_file, "_WAIT_SECONDS", 0.0)
    write_file(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_file_moves_over_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    move_file(tmp_path / "a", tmp_path / "b")
    move_file(tmp_path / "b", tmp_path / "c/d")
    assert (tmp_path / "c/d").read_text() == "a"
    assert names(tmp_path) == {"c"}
