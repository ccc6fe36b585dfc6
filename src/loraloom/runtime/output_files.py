"""Files that appear whole or not at all, under names that two processes never both take.

Names follow ComfyUI: `prefix_00001_.png`, counter one above the highest there. A name that is taken in the
meantime costs a try, never a file.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from loraloom.atomic_file import PartFile, part_file
from loraloom.confined import BadName, LeadsOut, parts_of, pinned
from loraloom.errors import InputError
from loraloom.workflow.graph import JSON

_DIGITS = 8
"""Of the longest counter that a name must have room for."""


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file that was written; `subfolder` is relative to the folder's root, with forward slashes."""

    path: Path
    subfolder: str
    kind: str

    def as_ui(self) -> dict[str, JSON]:
        """The form in which ComfyUI names a result."""
        return {"filename": self.path.name, "subfolder": self.subfolder, "type": self.kind}


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """A folder for results. kind: ComfyUI's name for it, "output" or "temp"."""

    root: Path
    kind: str = "output"

    def save(self, prefix: str, suffix: str, content: bytes, *, size: tuple[int, int] = (0, 0)) -> SavedFile:
        """Write `content` under the next free name of `prefix`.

        prefix may name subfolders and hold %width%, %height%, %year%, %month%, %day%, %hour%, %minute% and
        %second%; size is (width, height). Raises InputError when it leads out of the folder, and
        FileWriteError where nothing can be written."""
        parts, stem = self._place(prefix, size, suffix)
        directory = self.root.joinpath(*parts)
        try:
            with (
                pinned(self.root, parts, make=True) as folder,
                part_file(folder, content, named=directory) as part,
            ):
                name = _claim(part, folder, stem, suffix)
        except LeadsOut as error:
            raise InputError(
                f"file name prefix {prefix!r} leads out of the output folder through a link"
            ) from error
        return SavedFile(directory / name, "/".join(parts), self.kind)

    def _place(self, prefix: str, size: tuple[int, int], suffix: str) -> tuple[list[str], str]:
        """The folders and the beginning of the name that a prefix means."""
        text = _expand(prefix, size).replace("\\", "/")
        folders, _, stem = text.rpartition("/")
        rest = f"_{'9' * _DIGITS}_{suffix}"
        try:
            parts = parts_of(folders + "/" if folders else folders)
            # The counter follows, so that only what a name may not begin with counts, and the whole length.
            whole = parts_of(f"{text}{rest}" if stem else text)
        except LeadsOut as error:
            raise InputError(
                f"file name prefix {prefix!r} leads out of the output folder {self.root}; "
                "expected a relative name such as 'ComfyUI' or 'roses/red'"
            ) from error
        except BadName as error:
            raise InputError(
                f"file name prefix {_short(prefix)}: {error}; expected a relative name such as 'ComfyUI' or "
                "'roses/red'"
            ) from error
        return parts, whole[-1].removesuffix(rest) if stem else ""


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}…"


def _expand(prefix: str, size: tuple[int, int]) -> str:
    now = time.localtime()
    values = {
        "width": str(size[0]),
        "height": str(size[1]),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    return re.sub(r"%(\w+)%", lambda m: values.get(m[1], m[0]), prefix)


def _claim(part: PartFile, folder: Path, stem: str, suffix: str) -> str:
    counter = _highest(folder, stem) + 1
    while not part.claim(folder / (name := f"{stem}_{counter:05}_{suffix}")):
        counter += 1
    return name


def _highest(directory: Path, stem: str) -> int:
    pattern = re.compile(re.escape(stem) + r"_(\d+)(?:_|\.|$)")
    numbers = (pattern.match(entry.name) for entry in os.scandir(directory))
    return max((int(m[1]) for m in numbers if m), default=0)
