"""Files that a job names, on the machine that has the queue and on those that lack them.

A file is meant by what it holds: a node whose own file of that name holds something else fetches the head's.
It comes in pieces, is checked whole, and only then gets its name.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from loraloom.atomic_file import SUFFIX, make_folder
from loraloom.cluster.digests import Digests, digest_of
from loraloom.confined import BadName, parts_of
from loraloom.errors import InputError, LoraloomError
from loraloom.file_identity import BESIDE
from loraloom.file_lock import try_lock
from loraloom.folders import DIRECTORIES, INPUT_KINDS, MODEL_SUFFIXES, PICTURE_FOLDERS, ModelFolders
from loraloom.workflow.graph import JSON
from loraloom.workflow.needed_files import NeededFile, needed_files
from loraloom.workflow.schema import NodeSchema

PIECE_BYTES = 16 << 20
_LOOK_SECONDS = 0.1
_TOGETHER = {*BESIDE, *BESIDE.values()}

Fetch = Callable[[str, int], Awaitable[bytes]]
"""(digest, offset) → the next PIECE_BYTES of a file of the head, fewer at its end."""


class NotTheSame(LoraloomError):
    """What came is not what was asked for."""


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file of the head. kind: its folder; name: relative to it."""

    kind: str
    name: str
    size: int
    digest: str

    def to_json(self) -> dict[str, JSON]:
        return {"kind": self.kind, "name": self.name, "size": self.size, "digest": self.digest}


class Offer:
    """The head's files that jobs name."""

    def __init__(
        self, folders: ModelFolders, schemas: Callable[[], Mapping[str, NodeSchema]], digests: Digests
    ) -> None:
        self._folders, self._schemas, self._digests = folders, schemas, digests

    def of(self, prompt: Mapping[str, JSON]) -> list[tuple[SharedFile, Path]]:
        """The files of a prompt that are here, and where. Others are the nodes' own affair."""
        needed = [
            file for one in needed_files(prompt, self._schemas()) for file in self._in_folder(one) or [one]
        ]
        return [one for file in needed for one in self._found(file)]

    def _in_folder(self, needed: NeededFile) -> list[NeededFile]:
        """What a folder of pictures holds."""
        if PICTURE_FOLDERS not in needed.kinds:
            return []
        return [NeededFile(("input",), name) for name in self._folders.training_files(needed.name)]

    def _found(self, needed: NeededFile) -> list[tuple[SharedFile, Path]]:
        """A file and what belongs to it."""
        names = [needed.name, *(needed.name + suffix for suffix in sorted(MODEL_SUFFIXES))]
        for kind in needed.kinds:
            for name in names[: None if kind == "embeddings" else 1]:
                path = self._folders.find(kind, name)
                if path is not None and path.is_file():
                    return [self._shared(kind, n, p) for n, p in _with_beside(name, path)]
        return []

    def _shared(self, kind: str, name: str, path: Path) -> tuple[SharedFile, Path]:
        return SharedFile(kind, name, path.stat().st_size, self._digests.of(path)), path


def _with_beside(name: str, path: Path) -> list[tuple[str, Path]]:
    if (beside := BESIDE.get(path.name)) is None or not path.with_name(beside).is_file():
        return [(name, path)]
    return [(name, path), (name.removesuffix(path.name) + beside, path.with_name(beside))]


class Cache:
    """A node's files: its own folders, and before them one for what the head has and they lack."""

    def __init__(self, root: Path, inputs: Path, folders: ModelFolders) -> None:
        """root: laid out like a models folder. inputs: where input pictures of this worker go."""
        self._root, self._inputs = root, inputs
        self._folders = ModelFolders([root, *folders.roots], folders.extra)
        self._digests = Digests(root / "digests.json")

    async def provide(self, files: Sequence[Mapping[str, Any]], fetch: Fetch) -> None:
        """Have these files (`SharedFile.to_json`) here. Raises InputError, NotTheSame or OSError."""
        for entry in files:
            file = SharedFile(**dict(entry))
            if not await asyncio.to_thread(self._has, file):
                await self._fetch(file, fetch)

    def forget_others(self, files: Sequence[Mapping[str, Any]]) -> None:
        """Delete what else lies in the folders of these input files. Raises InputError or OSError."""
        wanted = [SharedFile(**dict(entry)) for entry in files]
        inputs = {self._place(file) for file in wanted if file.kind in INPUT_KINDS}
        for folder in {path.parent for path in inputs} - {self._inputs}:
            for path in folder.iterdir():
                if path.is_file() and path not in inputs:
                    path.unlink()

    def _has(self, file: SharedFile) -> bool:
        # Of two files that belong together both are the head's, or one could be beside another's.
        fetched = file.kind in INPUT_KINDS or PurePath(file.name.replace("\\", "/")).name in _TOGETHER
        own = self._place(file) if fetched else self._folders.find(file.kind, file.name)
        if own is None or not own.is_file() or own.stat().st_size != file.size:
            return False
        return self._digests.of(own) == file.digest

    def _place(self, file: SharedFile) -> Path:
        try:
            parts = parts_of(file.name)
        except BadName as error:
            raise InputError(f"{file.name!r} is no name of a file here: {error}") from error
        if file.kind in INPUT_KINDS:
            return self._inputs.joinpath(*parts)
        if file.kind not in DIRECTORIES:
            raise InputError(f"files of the kind {file.kind!r} are not passed on")
        return self._root.joinpath(DIRECTORIES[file.kind][0], *parts)

    async def _fetch(self, file: SharedFile, fetch: Fetch) -> None:
        place = self._place(file)
        make_folder(place.parent)
        async with _alone(self._root / f".{file.digest}.lock"):
            if await asyncio.to_thread(self._has, file):
                return  # another worker of this node has fetched it
            # One name for all: what a worker that was killed has left is written over.
            part = place.with_name(f".{file.digest[:16]}{SUFFIX}")
            try:
                with open(part, "wb") as target:
                    await _copy(file, fetch, lambda piece: target.write(piece))
                    target.flush()
                    os.fsync(target.fileno())
                if await asyncio.to_thread(digest_of, part) != file.digest:
                    raise NotTheSame(
                        f"{file.name} came damaged from the head; it is fetched anew when needed"
                    )
                os.replace(part, place)
            finally:
                part.unlink(missing_ok=True)


async def _copy(file: SharedFile, fetch: Fetch, write: Callable[[bytes], object]) -> None:
    """All pieces in order, the next one always on its way."""
    offsets = range(0, file.size, PIECE_BYTES)
    coming = [asyncio.ensure_future(fetch(file.digest, offset)) for offset in offsets[:1]]
    try:
        for offset in offsets:
            piece = await coming.pop()
            if offset + PIECE_BYTES < file.size:
                coming.append(asyncio.ensure_future(fetch(file.digest, offset + PIECE_BYTES)))
            if len(piece) != min(PIECE_BYTES, file.size - offset):
                raise NotTheSame(f"{file.name} has changed on the head while it was being fetched")
            await asyncio.to_thread(write, piece)
    finally:
        for left in coming:
            left.cancel()


@asynccontextmanager
async def _alone(lock: Path) -> AsyncGenerator[None]:
    """Among the workers of a node."""
    with open(lock, "ab") as file:
        while not try_lock(file):
            await asyncio.sleep(_LOOK_SECONDS)
        yield


class FileSource:
    """Gives pieces of offered files, and of no others. An actor on the head's machine."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    def offer(self, digest: str, path: str) -> None:
        self._paths[digest] = path

    def read(self, digest: str, offset: int) -> bytes:
        """A piece. Raises KeyError for what was not offered, and OSError."""
        return piece_of(self._paths[digest], offset)


def piece_of(path: str | Path, offset: int) -> bytes:
    """The next PIECE_BYTES of a file, fewer at its end. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)
