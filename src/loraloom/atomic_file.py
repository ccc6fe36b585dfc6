"""Files that appear whole or not at all.

A file is written beside its final place under a hidden name ending in `.part`, flushed to the disk, and only
then given its name; then its folder is flushed. A crash leaves the old file or the new one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import DiskFull, FileWriteError, PathTaken
from loraloom.windows import extended

SUFFIX = ".part"
"""The end of the names of files that are still being written."""

# Windows refuses to replace a file that another program has open, often only for a moment.
_ATTEMPTS = 40 if sys.platform == "win32" else 1
_WAIT_SECONDS = 0.05
_EFFECTIVE = os.access in os.supports_effective_ids
_ADVICE = {
    errno.EACCES: "choose another place, or make that one writable",
    errno.EPERM: "choose another place, or make that one writable",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space on that disk",
    errno.ENAMETOOLONG: "choose a shorter name",
}
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers that say that there is no space left."""
# What file systems answer that cannot flush a folder, or some files.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})

Content = bytes | Iterable[bytes]


def write_file(path: Path, content: Content, *, private: bool = False) -> None:
    """Write a file, or replace it; folders that are missing are made.

    content: all bytes, or pieces of them in order. private: a new file is for its owner alone, instead of
    what the umask says; one that is there keeps its permissions. Through a link its target is replaced; what
    is no file on a disk (a pipe, /dev/stdout) is written to. Raises FileWriteError, and PathTaken where a
    folder stands there or a file where a folder is needed."""
    with explained(path):
        mode = _mode_of(path)
        if mode is not None and not stat.S_ISREG(mode):
            with open(path, "wb") as file:
                _write(file.fileno(), content)
            return
        path = extended(Path(os.path.realpath(path)))
        if mode is not None and not os.access(path, os.W_OK, effective_ids=_EFFECTIVE):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        with _part(path.parent, content, private) as part:
            if mode is not None:
                with suppress(OSError):  # not on every file system
                    os.chmod(part.path, stat.S_IMODE(mode))
            _retried(os.replace, part.path, path)


@contextmanager
def part_file(folder: Path, content: Content, *, named: Path | None = None) -> Generator[PartFile]:
    """A complete file in `folder` that has no name yet; it is deleted when it has got none by the end.

    named: what messages call the folder. Raises FileWriteError or PathTaken."""
    with explained(named or folder), _part(folder, content, private=False) as part:
        yield part


@dataclass(frozen=True, slots=True)
class PartFile:
    """A complete file that waits for its name."""

    path: Path

    def claim(self, path: Path) -> bool:
        """Give it a name in its folder, unless that is taken: of two processes only one ever gets it."""
        if sys.platform == "win32":
            try:
                os.rename(self.path, path)
            except FileExistsError:
                return False
            return True
        try:
            os.link(self.path, path)
        except FileExistsError:
            return False
        except OSError:
            return self._claim_without_links(path)
        return True

    def replace(self, path: Path) -> None:
        """Give it a name in its folder, in place of what has it."""
        _retried(os.replace, self.path, path)

    def _claim_without_links(self, path: Path) -> bool:
        """For file systems without hard links (FAT, some network ones): a folder guards the name."""
        digest = hashlib.sha256(path.name.casefold().encode("utf-8", "surrogateescape")).hexdigest()
        guard = path.with_name(f".{digest[:32]}.claim")
        try:
            guard.mkdir()
        except FileExistsError:
            return False
        try:
            if os.path.lexists(path):
                return False
            os.rename(self.path, path)
        finally:
            guard.rmdir()
        return True


def move_file(old: Path, new: Path) -> None:
    """Give a file another name on the same disk, in place of what has it.

    Raises FileWriteError or PathTaken."""
    with explained(new):
        if new.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(new))
        make_folder(new.parent)
        _retried(os.replace, old, new)
        for folder in {old.parent, new.parent}:
            sync_folder(folder)


@contextmanager
def _part(folder: Path, content: Content, private: bool) -> Generator[PartFile]:
    make_folder(folder)
    path = folder / f".{uuid.uuid4().hex}{SUFFIX}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600 if private else 0o666)
    try:
        try:
            _write(descriptor, content)
            _sync(descriptor)
        finally:
            os.close(descriptor)
        yield PartFile(path)
        sync_folder(folder)
    finally:
        path.unlink(missing_ok=True)


def _write(descriptor: int, content: Content) -> None:
    for piece in (content,) if isinstance(content, bytes) else content:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _mode_of(path: Path) -> int | None:
    """Kind and permissions of what stands there; None when nothing does."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return mode


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, and flush where they are noted. mode: of the folder itself.

    Raises OSError."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(mode, parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def rename(old: Path, new: Path) -> None:
    """`os.rename`, waiting for a moment for a program that has the file open (Windows)."""
    _retried(os.rename, old, new)


def remove(path: Path) -> None:
    """Delete a file, waiting for a moment for a program that has it open (Windows)."""
    _retried(lambda file, _: os.unlink(file), path, path)


def _retried(rename: Callable[[Path, Path], None], old: Path, new: Path) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return rename(old, new)
        except PermissionError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(_WAIT_SECONDS)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk. Raises OSError."""
    if sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


@contextmanager
def explained(path: Path) -> Generator[None]:
    """What goes wrong within as FileWriteError, PathTaken or DiskFull, with what to do about it."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise PathTaken(f"{path} cannot be written: a file stands where a folder is needed") from error
    except IsADirectoryError as error:
        raise PathTaken(f"{path} cannot be written: a folder of that name is there") from error
    except OSError as error:
        said = (error.strerror or str(error), _ADVICE.get(error.errno or 0))
        kind = DiskFull if error.errno in FULL else FileWriteError
        raise kind(f"{path} cannot be written: {'; '.join(filter(None, said))}") from error
