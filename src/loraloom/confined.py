"""Names inside a folder: which ones are taken, and what they mean, whatever is put in their way meanwhile.

A name that was checked and is then opened may by then lead elsewhere, when somebody replaces a folder on the
way by a link. So the folder is opened once, part by part and without following links, and from then on meant
by its descriptor. Where the system has no such descriptors (all but Linux), names are checked and then used.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from loraloom.atomic_file import explained, make_folder
from loraloom.errors import InputError
from loraloom.windows import extended

MAX_PART_BYTES = 200
MAX_PARTS = 16
MAX_LENGTH = 1000

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³])\s*(\..*)?$")
# What names must not hold on Windows, where a colon even names another stream of a file.
_SIGNS = re.compile(r'[<>:"|?*]')
_WINDOWS = sys.platform == "win32"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_DESCRIPTORS = Path("/proc/self/fd")
_PINS = sys.platform == "linux" and _DESCRIPTORS.is_dir()
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_FILE = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class BadName(InputError):
    """A text that is no relative file name on every system."""


class LeadsOut(BadName):
    """A name that leads out of its folder."""


def parts_of(name: str) -> list[str]:
    """The parts of a relative name; both separators count. Raises BadName for one that no file may have."""
    text = name.replace("\\", "/")
    if _CONTROL.search(text) or text.startswith("/") or re.match(r"[A-Za-z]:", text):
        raise BadName("that is no relative file name")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if len(parts) > MAX_PARTS or len(text) > MAX_LENGTH:
        raise BadName(f"that name is too long; at most {MAX_PARTS} folders deep")
    if ".." in parts:
        raise LeadsOut("that name leads out of its folder")
    for part in parts:
        if len(part.encode()) > MAX_PART_BYTES or _RESERVED.match(part) or part != part.rstrip(". "):
            raise BadName("that is no file name that every system allows")
        if _WINDOWS and _SIGNS.search(part):
            raise BadName('on Windows a file name cannot hold any of < > : " | ? *')
    return parts


def resolved(root: Path, parts: Sequence[str]) -> Path:
    """What parts mean under `root`, links followed; raises LeadsOut when that is elsewhere, and
    FileNotFoundError when the folders change while they are looked at."""
    try:
        base = os.path.realpath(root)
        path = os.path.realpath(os.path.join(base, *parts))
    except OSError as error:
        raise FileNotFoundError(f"{root} is being changed") from error
    if path != base and not path.startswith(base.rstrip(os.sep) + os.sep):
        raise LeadsOut("that name leads out of its folder")
    return Path(path)


@contextmanager
def pinned(root: Path, parts: Sequence[str], *, make: bool = False) -> Generator[Path]:
    """A folder under `root`, as a path that means this very folder until the end. make: make it if it is not
    there.

    Raises LeadsOut; FileNotFoundError or NotADirectoryError when it is not there, and with `make` what
    `atomic_file` raises."""
    if make:
        with explained(root):
            make_folder(root)
            folder = resolved(root, parts)
    else:
        folder = resolved(root, parts)
    if sys.platform == "win32" or not _PINS:
        if make:
            with explained(folder):
                make_folder(folder)
        yield extended(folder)
        return
    base = Path(os.path.realpath(root))
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folder.relative_to(base).parts:
            descriptor = _step(descriptor, part, folder, make)
        yield _DESCRIPTORS / str(descriptor)
    finally:
        os.close(descriptor)


def open_inside(root: Path, parts: Sequence[str]) -> BinaryIO:
    """A file under `root`, opened for reading. Raises LeadsOut, and FileNotFoundError for what is no file."""
    path = resolved(root, parts)
    inner = path.relative_to(os.path.realpath(root)).parts
    if not inner:
        raise FileNotFoundError("that is a folder")
    try:
        with pinned(root, inner[:-1]) as folder:
            descriptor = os.open(folder / inner[-1], _FILE)
    except OSError as error:
        raise FileNotFoundError(f"{path} is no file that can be read") from error
    return _regular(descriptor, path)


def open_regular(path: Path | str) -> BinaryIO:
    """A file, opened for reading; a pipe or device is a FileNotFoundError and not waited for. OSError."""
    return _regular(os.open(path, _FILE & ~getattr(os, "O_NOFOLLOW", 0)), path)


def _regular(descriptor: int, path: Path | str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(f"{path} is no file")
    return os.fdopen(descriptor, "rb")


def _step(parent: int, part: str, named: Path, make: bool) -> int:
    """The descriptor of a folder in a folder; that of the parent is closed if all goes well."""
    try:
        found = os.open(part, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
        with explained(named):
            try:
                os.mkdir(part, dir_fd=parent)
            except FileExistsError:
                pass  # another has just made it
            else:
                os.fsync(parent)
            found = os.open(part, _FOLDER, dir_fd=parent)
    except OSError:
        if not make:
            raise
        with explained(named):
            raise
    os.close(parent)
    return found
