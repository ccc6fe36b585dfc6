"""File names that clients send: none of them leads out of its folder."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from starlette.exceptions import HTTPException

from loraloom import confined
from loraloom.confined import MAX_PART_BYTES, BadName, LeadsOut

__all__ = ["MAX_PART_BYTES", "annotated", "answered", "folder_inside", "inside", "opened", "parts_of"]

_ANNOTATION = re.compile(r"^(.*?)\s*\[(output|input|temp)\]$")


def inside(root: Path, name: str) -> Path:
    """The file that a relative name means under `root`, links resolved on both sides.

    Both separators count, on every system. Raises HTTPException 400 for a name that is none, 403 for one that
    leads out. To look at, not to open: see `opened`.
    """
    with answered():
        return confined.resolved(root, confined.parts_of(name))


def parts_of(name: str) -> list[str]:
    """The parts of a relative name; raises HTTPException 400 for one that no file may have."""
    with answered():
        return confined.parts_of(name)


def opened(root: Path, name: str) -> BinaryIO:
    """The file that a relative name means under `root`, open. Raises HTTPException 400, 403 or 404."""
    with answered():
        return confined.open_inside(root, confined.parts_of(name))


@contextmanager
def folder_inside(root: Path, parts: list[str], *, make: bool = False) -> Generator[Path]:
    """A folder under `root` that stays the one that it is, see `confined.pinned`. Raises HTTPException 403,
    404 when it is not there, and with `make` what `atomic_file` raises."""
    with answered(), confined.pinned(root, parts, make=make) as folder:
        yield folder


def annotated(name: str, default: str) -> tuple[str, str]:
    """A name like "picture.png [output]" as name and folder kind."""
    match = _ANNOTATION.match(name)
    return (match[1], match[2]) if match else (name, default)


@contextmanager
def answered() -> Generator[None]:
    """Around what looks at a file that a client named: HTTPException 400, 403 or 404 for what is wrong."""
    try:
        yield
    except LeadsOut as error:
        raise HTTPException(403, str(error)) from error
    except BadName as error:
        raise HTTPException(400, str(error)) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise HTTPException(404) from error
