"""A list of files that remembers which model folders it lists.

Packs make their choices out of it (`["None"] + folder_paths.get_filename_list("loras")`); with the folder
known, the choices follow what is in the folder, and a file that was replaced makes the node run again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsIndex


class FileList(list[str]):
    """folders: kinds whose files are in the list; fixed: the choices beside them."""

    def __init__(self, files: Iterable[str], folders: tuple[str, ...], fixed: tuple[str, ...] = ()) -> None:
        super().__init__(files)
        self.folders, self.fixed = folders, fixed

    def __add__(self, other: Iterable[str]) -> FileList:  # type: ignore[override]
        return self._joined([*self, *other], other)

    def __radd__(self, other: Iterable[str]) -> FileList:
        return self._joined([*other, *self], other)

    def __iadd__(self, other: Iterable[str]) -> FileList:  # type: ignore[override]
        return self._joined([*self, *other], other)

    def insert(self, index: SupportsIndex, value: str, /) -> None:
        super().insert(index, value)
        self.fixed = (*self.fixed, value)

    def append(self, value: str, /) -> None:
        super().append(value)
        self.fixed = (*self.fixed, value)

    def _joined(self, items: list[str], other: Iterable[str]) -> FileList:
        folders, fixed = ((), tuple(other))
        if isinstance(other, FileList):
            folders, fixed = other.folders, other.fixed
        return FileList(items, (*self.folders, *folders), (*self.fixed, *fixed))
