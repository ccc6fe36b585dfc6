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
from loraloom.workflow.graph import JSON

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
        for entry, staged in files:
            final = self._name(self.temp, entry)
            move_file(Path(staged), final)
            self._promised.discard(final)
            message = renamed(message, entry, final.name)
        return message

    def promised(self, message: dict[str, Any], files: Files) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """The message with the names that its files will have, and (passing name, own name) of each."""
        names: list[tuple[str, str]] = []
        for entry, staged in files:
            final = self._name(self.output, entry)
            names.append((staged, str(final)))
            message = renamed(message, entry, final.name)
        return message, names

    def settled(self, names: Sequence[tuple[str, str]]) -> None:
        """The files have their names, or never will."""
        self._promised.difference_update(Path(final) for _, final in names)

    @property
    def promised_names(self) -> frozenset[Path]:
        """Names that files will have."""
        return frozenset(self._promised)

    def _name(self, root: Path, entry: Mapping[str, JSON]) -> Path:
        parts = parts_of(str(entry.get("subfolder") or ""))
        name = parts_of(str(entry["filename"]))[-1]
        with pinned(root, parts, make=True):
            folder = root.joinpath(*parts)
        counted = _COUNTED.fullmatch(name)
        stem, rest = (counted["stem"], counted["rest"]) if counted else os.path.splitext(name)
        number = max((self._number(stem, n) for n in self._names(folder)), default=0) + 1 if counted else 1
        path = folder / (f"{stem}_{number:05}_{rest}" if counted else name)
        while path in self._promised or path.exists():
            number += 1
            path = folder / f"{stem}_{number:05}_{rest}"
        self._promised.add(path)
        return path

    def _names(self, folder: Path) -> list[str]:
        return [*os.listdir(folder), *(p.name for p in self._promised if p.parent == folder)]

    @staticmethod
    def _number(stem: str, name: str) -> int:
        rest = name[len(stem) + 1 :] if name.startswith(f"{stem}_") else ""
        found = re.match(r"(\d+)(?:_|\.|$)", rest)
        return int(found[1]) if found else 0


def renamed(value: Any, entry: Mapping[str, JSON], name: str) -> Any:
    """JSON in which a result has another file name."""
    if value == entry:
        return {**entry, "filename": name}
    if isinstance(value, dict):
        return {k: renamed(v, entry, name) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [renamed(item, entry, name) for item in cast("list[Any]", value)]
    return value
