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
from loraloom.errors import InputError
from loraloom.workflow.graph import JSON

MAX_NAME_BYTES = 200


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
        directory, stem = self._place(prefix, size)
        if not Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(self.root)):
            raise InputError(f"file name prefix {prefix!r} leads out of the output folder through a link")
        with part_file(directory, content) as part:
            path = _claim(part, directory, stem, suffix)
        subfolder = directory.relative_to(self.root).as_posix()
        return SavedFile(path, "" if subfolder == "." else subfolder, self.kind)

    def _place(self, prefix: str, size: tuple[int, int]) -> tuple[Path, str]:
        text = _expand(prefix, size).replace("\\", "/")
        parts = [p for p in text.split("/") if p not in ("", ".")]
        if "\0" in text or text.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", text):
            raise InputError(
                f"file name prefix {prefix!r} leads out of the output folder {self.root}; "
                "expected a relative name such as 'ComfyUI' or 'roses/red'"
            )
        if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
            raise InputError(f"file name prefix {prefix[:40]!r}… is longer than {MAX_NAME_BYTES} bytes")
        stem = parts.pop() if parts and not text.endswith("/") else ""
        return self.root.joinpath(*parts), stem


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


def _claim(part: PartFile, directory: Path, stem: str, suffix: str) -> Path:
    counter = _highest(directory, stem) + 1
    while not part.claim(path := directory / f"{stem}_{counter:05}_{suffix}"):
        counter += 1
    return path


def _highest(directory: Path, stem: str) -> int:
    pattern = re.compile(re.escape(stem) + r"_(\d+)(?:_|\.|$)")
    numbers = (pattern.match(entry.name) for entry in os.scandir(directory))
    return max((int(m[1]) for m in numbers if m), default=0)
