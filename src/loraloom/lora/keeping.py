"""Changes to a LoRA's files: another name, notes, a preview picture. Nothing is ever overwritten but notes
and the preview. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from loraloom import atomic_file
from loraloom.atomic_file import make_folder, write_file
from loraloom.errors import InputError
from loraloom.lora.sidecars import SUFFIXES, read_sidecars

NOTE_FIELDS = ("description", "activation text", "preferred weight", "notes")
"""What A1111 and Forge keep in <stem>.json, of which a person may write."""

MAX_NOTE = 20_000
PREVIEW = ".preview.png"


def rename(path: Path, target: Path) -> None:
    """Move a LoRA with everything beside it. Raises InputError where something is in the way.

    target: the new path of the LoRA itself, with the same suffix."""
    if target.suffix != path.suffix:
        raise InputError(f"a LoRA keeps its ending: {target.name!r} must end in {path.suffix}")
    old, new = path.with_suffix(""), target.with_suffix("")
    moves = [(path, target)] + [
        (side, new.with_name(new.name + suffix))
        for suffix in SUFFIXES
        if (side := old.with_name(old.name + suffix)).is_file()
    ]
    same = path.exists() and target.exists() and os.path.samefile(path, target)
    taken = [there for _, there in moves if there.exists() and not same]
    if taken:
        raise InputError(f"{taken[0].name!r} is there already; choose another name")
    try:
        make_folder(target.parent)
        for here, there in moves:
            atomic_file.rename(here, there)
    except OSError as error:
        raise InputError(f"{path.name} cannot be moved to {target}: {error.strerror}") from error


def write_notes(path: Path, values: Mapping[str, object]) -> None:
    """Put fields into <stem>.json and leave the others there as they are. Raises InputError."""
    for name, value in values.items():
        if name not in NOTE_FIELDS:
            raise InputError(f"{name!r} is no field of a note; known: {', '.join(NOTE_FIELDS)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number if name == "preferred weight" else isinstance(value, str)):
            raise InputError(f"{name} is {str(value)[:40]!r}; expected a {'number' if number else 'text'}")
        if isinstance(value, str) and len(value) > MAX_NOTE:
            raise InputError(f"{name} has {len(value)} characters; at most {MAX_NOTE} are kept")
    known = read_sidecars(path).user
    text = json.dumps({**known, **values}, indent=4, ensure_ascii=False)
    _write_beside(path, ".json", text.encode())


def write_preview(path: Path, picture: bytes) -> None:
    """Put a PNG beside a LoRA, as <stem>.preview.png."""
    _write_beside(path, PREVIEW, picture)


def _write_beside(path: Path, suffix: str, content: bytes) -> None:
    stem = path.with_suffix("")
    place = stem.with_name(stem.name + suffix)
    if place.exists() and not place.is_file():  # into a pipe one would write until somebody reads
        raise InputError(f"{place.name} beside the LoRA is no regular file; take it away")
    write_file(place, content)
