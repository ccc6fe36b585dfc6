"""What a disk may hold after the power went: everything that was flushed, and anything of the rest.

A file's contents are kept by fsync of the file, its name by fsync of its folder. Of what came after, a disk
may hold nothing, all, the first part of it, or any pieces, torn anywhere; of names, the first part for each
folder.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Loss: TypeAlias = Literal["everything", "nothing", "the end", "pieces"]
LOSSES: tuple[Loss, ...] = ("everything", "nothing", "the end", "pieces")

_HEAD = struct.Struct("=c7xQQIIII")
_SECTOR = 512
ACKNOWLEDGED = "A"


@dataclass(frozen=True, slots=True)
class Record:
    """kind: C a file is made, T cut to `offset` bytes, W written to, S flushed; F a folder flushed, M made;
    R a name changed to `other`, L linked to it, U taken away; A something promised (`path` says what)."""

    kind: str
    inode: int
    offset: int
    path: str
    other: str
    data: bytes


def read_records(file_path: Path) -> Iterator[Record]:
    with file_path.open("rb") as file:
        while head := file.read(_HEAD.size):
            kind, inode, offset, first, second, size, _ = _HEAD.unpack(head)
            path, other = (os.fsdecode(file.read(length)) for length in (first, second))
            yield Record(kind.decode(), inode, offset, path, other, file.read(size))


def acknowledge(path: Path, what: str) -> None:
    """Note among the records that something has been promised."""
    text = what.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, _HEAD.pack(b"A", 0, 0, len(text), 0, 0, 0) + text)
    os.close(descriptor)


@dataclass(slots=True)
class _File:
    """kept: what is on the disk for certain; later: pieces that were written since, and cuts (no data)."""

    kept: bytes = b""
    later: list[tuple[int, bytes | None]] = field(default_factory=lambda: list[tuple[int, bytes | None]]())

    def after(self, changes: Sequence[tuple[int, bytes | None]]) -> bytes:
        content = bytearray(self.kept)
        for offset, data in changes:
            if data is None:
                del content[offset:]
            content += bytes(max(0, offset - len(content)))
            if data is not None:
                content[offset : offset + len(data)] = data
        return bytes(content)

    def found(self, loss: Loss, rng: random.Random) -> bytes:
        match loss:
            case "everything":
                return self.kept
            case "nothing":
                return self.after(self.later)
            case "the end":
                whole = self.later[: rng.randrange(len(self.later) + 1)]
                return self.after([*whole[:-1], *(_torn(last, rng) for last in whole[-1:])])
            case "pieces":
                return self.after([_torn(each, rng) for each in self.later if rng.random() < 0.7])


def _torn(change: tuple[int, bytes | None], rng: random.Random) -> tuple[int, bytes | None]:
    """A write of which only the first sectors were done; the rest of its space may be zeros."""
    offset, data = change
    if data is None or rng.random() < 0.5:
        return change
    end = min(len(data), rng.randrange(len(data) // _SECTOR + 1) * _SECTOR)
    return offset, data[:end] + bytes(rng.choice((0, len(data) - end)))


class Disk:
    """Files below one folder, which is there from the beginning."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self._files: list[_File] = []
        self._by_inode: dict[int, int] = {}  # numbers of files that are gone are given to others
        self._kept: dict[str, int] = {}
        self._later: list[tuple[str, str, int]] = []

    def see(self, record: Record) -> None:
        """One thing more that was done."""
        match record.kind:
            case "C":
                self._by_inode[record.inode] = len(self._files)
                self._files.append(_File())
                self._later.append(("", record.path, self._by_inode[record.inode]))
            case "T":
                self._file(record).later.append((record.offset, None))
            case "W":
                self._file(record).later.append((record.offset, record.data))
            case "S":
                file = self._file(record)
                file.kept, file.later = file.after(file.later), []
            case "F":
                self._flush(record.path)
            case "M":
                self._later.append(("", record.path, -1))
            case "U":
                self._later.append((record.path, "", 0))
            case "L" | "R":
                old = record.path if record.kind == "R" else ""
                self._later.append((old, record.other, self._by_inode[record.inode]))
            case _:
                pass

    def _file(self, record: Record) -> _File:
        return self._files[self._by_inode[record.inode]]

    def _flush(self, folder: str) -> None:
        done = [change for change in self._later if _folder_of(change) == folder]
        self._later = [change for change in self._later if _folder_of(change) != folder]
        for change in done:
            _apply(self._kept, change)

    def names(self, loss: Loss, rng: random.Random) -> dict[str, int]:
        """Path → number of the file, -1 for folders."""
        names, gone = dict(self._kept), set[str]()
        for change in () if loss == "everything" else self._later:
            folder = _folder_of(change)
            if loss in ("the end", "pieces") and rng.random() < 0.2:
                gone.add(folder)
            if folder not in gone:
                _apply(names, change)
        return names

    def write(self, target: Path, loss: Loss, rng: random.Random) -> None:
        """Put what may be found into a folder."""
        names = self.names(loss, rng)
        for path, number in sorted(names.items()):
            above = os.path.dirname(path)
            if above != self._root and names.get(above) != -1:
                continue
            place = target / os.path.relpath(path, self._root)
            if not place.parent.is_dir():
                continue
            if number == -1:
                place.mkdir()
            else:
                place.write_bytes(self._files[number].found(loss, rng))


def _folder_of(change: tuple[str, str, int]) -> str:
    return os.path.dirname(change[1] or change[0])


def _apply(names: dict[str, int], change: tuple[str, str, int]) -> None:
    old, new, number = change
    if old:
        names.pop(old, None)
    if new:
        names[new] = number
