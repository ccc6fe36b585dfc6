"""Files that came from other machines: which names they will have here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from loraloom.atomic_file import move_file
from loraloom.confined import parts_of, pinned
from loraloom.jobs.publishing import numbered
from loraloom.workflow.graph import JSON
from loraloom.workflow.json_text import write_json

_COUNTED = re.compile(r"(?P<stem>.*)_(?P<number>\d{5,})_(?P<rest>\.[^.]*)$", re.DOTALL)

Files = Sequence[tuple[Mapping[str, JSON], str]]
"""(what ComfyUI calls the file, the passing name under which it lies here) of each."""


@dataclass(slots=True)
class Incoming:
    """Chooses names in the output and temporary folders, none twice."""

    output: Path
    temp: Path
    _promised: set[Path] = field(default_factory=lambda: set[Path]())

    def temporary(self, message: dict[str, Any], files: Files) -> dict[str, Any]:
        """The message with its temporary files, which have their names at once."""
        finals = self._names(self.temp, files)
        for (_, staged), final in zip(files, finals, strict=True):
            move_file(Path(staged), final)
            self._promised.discard(final)
        return _renamed(message, files, finals)

    def promised(self, message: dict[str, Any], files: Files) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """The message with the names that its files will have, and (passing name, own name) of each."""
        finals = self._names(self.output, files)
        names = [(staged, str(final)) for (_, staged), final in zip(files, finals, strict=True)]
        return _renamed(message, files, finals), names

    def settled(self, names: Sequence[tuple[str, str]]) -> None:
        """The files have their names, or never will."""
        self._promised.difference_update(Path(final) for _, final in names)

    @property
    def promised_names(self) -> frozenset[Path]:
        """Names that files will have."""
        return frozenset(self._promised)

    def _names(self, root: Path, files: Files) -> list[Path]:
        """Free names for the files of one message, each promised."""
        highest: dict[tuple[Path, str], int] = {}
        return [self._name(root, entry, highest) for entry, _ in files]

    def _name(self, root: Path, entry: Mapping[str, JSON], highest: dict[tuple[Path, str], int]) -> Path:
        """highest: the numbers that are taken in a folder after a stem; it is read once for all files."""
        parts = parts_of(str(entry.get("subfolder") or ""))
        name = parts_of(str(entry["filename"]))[-1]
        with pinned(root, parts, make=True):
            folder = root.joinpath(*parts)
        counted = _COUNTED.fullmatch(name)
        stem, rest = (counted["stem"], counted["rest"]) if counted else os.path.splitext(name)
        number = 1
        if counted:
            if (folder, stem) not in highest:
                highest[folder, stem] = self._highest(folder, stem)
            number += highest[folder, stem]
        path = folder / (numbered(stem, f"_{number:05}_{rest}") if counted else name)
        while path in self._promised or path.exists():
            number += 1
            path = folder / numbered(stem, f"_{number:05}_{rest}")
        if counted:
            highest[folder, stem] = number
        self._promised.add(path)
        return path

    def _highest(self, folder: Path, stem: str) -> int:
        known = [*os.listdir(folder), *(p.name for p in self._promised if p.parent == folder)]
        return max((_number(stem, name) for name in known), default=0)


def _number(stem: str, name: str) -> int:
    rest = name[len(stem) + 1 :] if name.startswith(f"{stem}_") else ""
    found = re.match(r"(\d+)(?:_|\.|$)", rest)
    return int(found[1]) if found else 0


def _renamed(message: dict[str, Any], files: Files, finals: Sequence[Path]) -> dict[str, Any]:
    """The message with the names that its files have here, all at once: a new name may be the former one of
    another."""
    if not files:
        return message
    names = {write_json(entry): final.name for (entry, _), final in zip(files, finals, strict=True)}
    return _with(message, names)


def _with(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        known = cast("dict[str, Any]", value)
        name = names.get(write_json(known)) if "filename" in known else None
        return {k: _with(v, names) for k, v in known.items()} if name is None else {**known, "filename": name}
    return [_with(item, names) for item in cast("list[Any]", value)] if isinstance(value, list) else value
