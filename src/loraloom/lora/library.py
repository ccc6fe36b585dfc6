"""All LoRA files of some folders, with what their headers and sidecars say, kept up to date. No torch.

What was read is remembered in a cache file, so that thousands of files cost one listing of their folders.
Files that are new or have changed are read by `read_next`, one at a time; `since` tells what has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from loraloom.atomic_file import write_file
from loraloom.errors import InputError, LoraloomError
from loraloom.file_identity import FileIdentity
from loraloom.folders import is_shown
from loraloom.lora.algebras import algebra_title, recognise
from loraloom.lora.file import LoraFile, read_lora
from loraloom.lora.hashes import cache_file
from loraloom.lora.metadata import facts
from loraloom.lora.origin import base_of, title_of
from loraloom.lora.sidecars import SUFFIXES, read_sidecars
from loraloom.lora.triggers import frequent_tags, triggers_of
from loraloom.weights.header import open_regular

FORMAT = 3
_MODULES_LOOKED_AT = 40
_SAMPLE_BYTES = 4096
_SHOWN_TAGS = 12
_NOTES_LENGTH = 400


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. name: relative to its folder. family: "" where unknown; base: what people call it.

    preview: when its picture was changed, 0 where there is none. alike: equal for files whose tensors are
    most likely equal (names, shapes and samples of the data). strength: the one that its user prefers, where
    noted. problem: why it cannot be used, if so.
    """

    name: str
    path: str
    size: int
    modified: float
    family: str = ""
    base: str = ""
    title: str = ""
    rank: str = ""
    algebra: str = ""
    triggers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notes: str = ""
    preview: float = 0
    alike: str = ""
    strength: float | None = None
    problem: str = ""


State = tuple[Any, ...]


@dataclass(slots=True)
class _Known:
    state: State
    entry: Entry
    version: int
    read: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed since a version. read, total: how many files have been read, of how many. whole: that
    version is none of this library, and these are all entries."""

    entries: tuple[Entry, ...]
    gone: tuple[str, ...]
    version: int
    read: int
    total: int
    whole: bool


@dataclass(slots=True)
class _Place:
    name: str
    path: Path
    state: State
    preview: float = 0


@dataclass(slots=True)
class Library:
    """May be used from several threads. cache: the file that remembers, in the user's cache folder."""

    cache: Path = field(default_factory=lambda: cache_file().with_name("lora-library.json"))
    _files: dict[str, _Known] = field(default_factory=lambda: dict[str, _Known]())
    _gone: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    _waiting: deque[_Place] = field(default_factory=lambda: deque[_Place]())
    _remembered: dict[str, tuple[State, Entry]] | None = None
    _version: int = field(default_factory=lambda: time.time_ns() // 1000)
    _first: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._first = self._version

    def knows(self, version: int) -> bool:
        """Whether a version is one of this library's: they begin at the time, and so behind those of one that
        was there before."""
        with self._lock:
            return self._first < version <= self._version

    def scan(self, directories: Sequence[Path]) -> None:
        """List the folders. Files that are as they were keep what was read of them; others wait for it."""
        found = {place.name: place for place in _places(directories)}
        with self._lock:
            if self._remembered is None:
                self._remembered = _read_cache(self.cache)
            self._version += 1
            self._waiting.clear()
            for name in [n for n in self._files if n not in found]:
                del self._files[name]
                self._gone[name] = self._version
            for name, place in found.items():
                self._take(name, place)

    def _take(self, name: str, place: _Place) -> None:
        known = self._files.get(name)
        if known is not None and known.state == place.state and known.read:
            return
        self._gone.pop(name, None)
        remembered = (self._remembered or {}).get(str(place.path))
        if remembered is not None and remembered[0] == place.state and remembered[1].name == name:
            self._files[name] = _Known(place.state, remembered[1], self._version, True)
            return
        size, changed = place.state[0], place.state[1] / 1e9
        bare = Entry(name, str(place.path), size, changed, preview=place.preview)
        self._files[name] = _Known(place.state, bare, self._version, False)
        self._waiting.append(place)

    def read_next(self) -> bool:
        """Read one file that waits; False when none does."""
        with self._lock:
            if not self._waiting:
                return False
            place = self._waiting.popleft()
        entry = read_entry(place.name, place.path, place.preview)
        with self._lock:
            known = self._files.get(place.name)
            if known is not None and known.state == place.state:
                self._version += 1
                self._files[place.name] = _Known(place.state, entry, self._version, True)
        return True

    def since(self, version: int) -> Changes:
        """Entries that are new or were read after `version`, and names that are gone; all entries for a
        version that is none of this library's, such as 0."""
        with self._lock:
            whole = not self.knows(version)
            entries = tuple(k.entry for k in self._files.values() if whole or k.version > version)
            gone = tuple(n for n, v in self._gone.items() if not whole and v > version)
            total = len(self._files)
            return Changes(entries, gone, self._version, total - len(self._waiting), total, whole)

    def find(self, name: str) -> Entry | None:
        with self._lock:
            known = self._files.get(name)
            return None if known is None else known.entry

    def alike(self, entry: Entry) -> list[Entry]:
        """Other files that most likely hold the same tensors."""
        with self._lock:
            entries = [known.entry for known in self._files.values()]
        return [e for e in entries if entry.alike and e.alike == entry.alike and e.name != entry.name]

    def save(self) -> None:
        """Write the cache file; one that cannot be written costs time only."""
        with self._lock:
            data = {k.entry.path: [k.state, asdict(k.entry)] for k in self._files.values() if k.read}
        with suppress(InputError):
            write_file(self.cache, json.dumps({"version": FORMAT, "files": data}).encode())


def read_entry(name: str, path: Path, preview: float = 0) -> Entry:
    """What a file's header and sidecars say; one that cannot be used says why."""
    try:
        status = path.stat()
        file = read_lora(path)
        sidecars = read_sidecars(path)
        family = base_of(file)
        said = facts(file.metadata)
        title = said.get("title", "")
        notes = sidecars.user.get("notes")
        return Entry(
            name=name, path=str(path), size=status.st_size, modified=status.st_mtime, family=family or "",
            base=title_of(family) if family else "", title="" if title == path.stem else title,
            rank=_rank(file), algebra=_algebra(file), triggers=triggers_of(file.metadata, sidecars).words,
            tags=tuple(tag for tag, _ in frequent_tags(file.metadata)[:_SHOWN_TAGS]),
            notes=(notes if isinstance(notes, str) else sidecars.description)[:_NOTES_LENGTH],
            preview=preview, alike=_alike(file), strength=_strength(sidecars.user.get("preferred weight")),
        )  # fmt: skip
    except (LoraloomError, OSError) as error:
        try:
            status = path.stat()
        except OSError:
            return Entry(name, str(path), 0, 0, problem=str(error))
        return Entry(name, str(path), status.st_size, status.st_mtime, preview=preview, problem=str(error))


def _strength(noted: object) -> float | None:
    """A preferred strength; A1111 and Forge write 0 where nobody has chosen one."""
    if not isinstance(noted, int | float) or isinstance(noted, bool) or not noted or not math.isfinite(noted):
        return None
    return float(noted)


def _rank(file: LoraFile) -> str:
    ranks: Counter[int] = Counter()
    for module in file.modules[:_MODULES_LOOKED_AT]:
        shapes = file.shapes(module)
        for one in recognise(shapes)[0]:
            rank = one.algebra.rank(one.pick(shapes))
            if rank is not None:
                ranks[rank] += 1
    return str(ranks.most_common(1)[0][0]) if ranks else ""


def _algebra(file: LoraFile) -> str:
    kinds: Counter[str] = Counter()
    for module in file.modules[:_MODULES_LOOKED_AT]:
        for one in recognise(file.shapes(module))[0]:
            kinds[one.label] += 1
    return algebra_title(kinds.most_common(1)[0][0]) if kinds else ""


def _alike(file: LoraFile) -> str:
    """A digest of the tensors' names and shapes, and of their data at four places."""
    digest = hashlib.blake2b(digest_size=12)
    for name, info in sorted(file.header.tensors.items()):
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
    start, end = file.header.data_start, file.header.file_size
    with os.fdopen(open_regular(file.path), "rb") as stream:
        for part in range(4):
            stream.seek(max(start, start + (end - start - _SAMPLE_BYTES) * part // 3))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


# ---- Folders ----


def _places(directories: Sequence[Path]) -> Iterator[_Place]:
    """Every LoRA file, each name once: that of the first folder which has it."""
    seen: set[str] = set()
    for directory in directories:
        for folder, beside in _folders(directory):
            for place in _in_folder(directory, folder, beside):
                if place.name not in seen:
                    seen.add(place.name)
                    yield place


def _folders(directory: Path) -> Iterator[tuple[str, dict[str, os.DirEntry[str]]]]:
    waiting, seen = [str(directory)], set[str]()
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = {e.name: e for e in os.scandir(folder) if is_shown(e.name)}
        except OSError:
            continue
        waiting += [e.path for e in entries.values() if e.is_dir()]
        yield folder, entries


def _in_folder(root: Path, folder: str, entries: Mapping[str, os.DirEntry[str]]) -> Iterator[_Place]:
    stems = {
        os.path.splitext(name)[0]: name for name in entries if name.lower().endswith((".safetensors", ".sft"))
    }
    beside: dict[str, list[tuple[int, FileIdentity]]] = {}
    for name, entry in entries.items():
        rank = next(
            (i for i, s in enumerate(SUFFIXES) if name.endswith(s) and name[: -len(s)] in stems), None
        )
        if rank is not None:
            with suppress(OSError):
                found = (rank, FileIdentity.of_status(entry.path, entry.stat()))
                beside.setdefault(name[: -len(SUFFIXES[rank])], []).append(found)
    for stem, name in stems.items():
        path = Path(folder, name)
        try:
            own = FileIdentity.of(path)
        except OSError:
            continue
        sidecars = sorted((rank, found.state) for rank, found in beside.get(stem, []))
        pictures = [found.mtime_ns / 1e9 for rank, found in sorted(beside.get(stem, [])) if rank < PICTURES]
        relative = os.path.relpath(path, root).replace(os.sep, "/")
        yield _Place(relative, path, _plain((*own.state, sidecars)), next(iter(pictures), 0))


PICTURES = sum(suffix.rsplit(".", 1)[-1] in ("png", "jpg", "jpeg", "webp", "gif") for suffix in SUFFIXES)
"""How many of the sidecars' suffixes, the first ones, are those of pictures."""


def _plain(state: object) -> State:
    """A state as JSON would give it back, so that both compare equal."""
    return tuple(json.loads(json.dumps(state)))


def _read_cache(path: Path) -> dict[str, tuple[State, Entry]]:
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        files = found["files"] if found["version"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    known: dict[str, tuple[State, Entry]] = {}
    for name, row in cast("dict[str, Any]", files).items():
        try:
            state, values = cast("tuple[list[Any], dict[str, Any]]", row)
            lists = {key: tuple(values[key]) for key in ("triggers", "tags")}
            known[name] = (tuple(state), Entry(**cast("dict[str, Any]", {**values, **lists})))
        except (TypeError, ValueError, KeyError):
            continue
    return known
