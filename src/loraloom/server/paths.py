"""File names that clients send: none of them leads out of its folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from starlette.exceptions import HTTPException

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
_ANNOTATION = re.compile(r"^(.*?)\s*\[(output|input|temp)\]$")
MAX_PART_BYTES = 200
MAX_PARTS = 16
MAX_LENGTH = 1000


def inside(root: Path, name: str) -> Path:
    """The file that a relative name means under `root`, links resolved on both sides.

    Both separators count, on every system. Raises HTTPException 400 for a name that is none, 403 for one that
    leads out.
    """
    parts = parts_of(name)
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, *parts))
    if path != base and not path.startswith(base + os.sep):
        raise HTTPException(403, "that name leads out of its folder")
    return Path(path)


def parts_of(name: str) -> list[str]:
    """The parts of a relative name; raises HTTPException 400 for one that no file may have."""
    text = name.replace("\\", "/")
    if _CONTROL.search(text) or text.startswith("/") or re.match(r"[A-Za-z]:", text):
        raise HTTPException(400, "that is no relative file name")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise HTTPException(400, "that name is no valid text") from error
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if len(parts) > MAX_PARTS or len(text) > MAX_LENGTH:
        raise HTTPException(400, f"that name is too long; at most {MAX_PARTS} folders deep")
    if ".." in parts:
        raise HTTPException(403, "that name leads out of its folder")
    for part in parts:
        if len(part.encode()) > MAX_PART_BYTES or _RESERVED.match(part) or part != part.rstrip(". "):
            raise HTTPException(400, "that is no file name that every system allows")
    return parts


def annotated(name: str, default: str) -> tuple[str, str]:
    """A name like "picture.png [output]" as name and folder kind."""
    match = _ANNOTATION.match(name)
    return (match[1], match[2]) if match else (name, default)
