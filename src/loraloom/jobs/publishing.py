"""Files that a job made elsewhere get their names here: with its result or not at all, and once.

They lie on the disk, whole, under passing names. The result is committed together with the names that they
shall have; then they get them. After a crash in between `resume` does what was left to do, and deletes what
no result knows.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeAlias, cast

from loraloom.atomic_file import PartFile, make_folder, sync_folder
from loraloom.confined import MAX_PART_BYTES
from loraloom.jobs.store import Store

Commit: TypeAlias = "Callable[[Callable[[Store], None]], Awaitable[None]]"
Files: TypeAlias = "Sequence[tuple[str, str]]"
"""(passing name, own name) of each."""
Others: TypeAlias = "Mapping[tuple[str, ...], str]"
"""The parts of a name within the folder of results → the file's other name there."""


@dataclass(frozen=True, slots=True)
class Places:
    """staging: the folder of passing names, None for none; output: the one that results are named in."""

    staging: Path | None = None
    output: Path = Path("output")


async def publish(commit: Commit, places: Places, job_id: str, files: Files) -> Others:
    """Give the files of a job's committed result their names. A name that somebody
    else has taken meanwhile is left to them: what becomes of those names."""
    others = await asyncio.to_thread(_give_names, files, places.output)
    await commit(lambda s: _done(s, job_id, files, others))
    await asyncio.to_thread(discard, files)
    return others


async def resume(commit: Commit, waiting: Iterable[tuple[str, str, str]], places: Places) -> None:
    """Finish what a former server had begun; what else lies in the folder of passing names is deleted.

    waiting: `Store.publications`."""
    files: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for job_id, staged, final in waiting:
        files[job_id].append((staged, final))
    for job_id, of_job in files.items():
        await publish(commit, places, job_id, of_job)
    if (folder := places.staging) is not None and folder.is_dir():
        await asyncio.to_thread(lambda: discard([(str(path), "") for path in folder.iterdir()]))


def discard(files: Files) -> None:
    """Delete the passing names."""
    for staged, _ in files:
        with suppress(OSError):
            Path(staged).unlink(missing_ok=True)


def with_names(value: Any, others: Others) -> Any:
    """JSON that names results as ComfyUI does, with other names for some."""
    if isinstance(value, list):
        return [with_names(item, others) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    known = cast("dict[str, Any]", value)
    if known.get("type") == "output" and (name := others.get(_place_of(known))) is not None:
        return {**known, "filename": name}
    return {k: with_names(v, others) for k, v in known.items()}


def _place_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (*PurePath(str(entry.get("subfolder") or "")).parts, str(entry.get("filename")))


def _done(store: Store, job_id: str, files: Files, others: Others) -> None:
    if others:
        store.rewrite(job_id, lambda value: with_names(value, others))
    store.published([staged for staged, _ in files])


def _give_names(files: Files, output: Path) -> Others:
    others: dict[tuple[str, ...], str] = {}
    for staged, final in files:
        part, wanted = PartFile(Path(staged)), Path(final)
        if not part.path.exists():
            continue  # where there are no hard links it had its name already
        make_folder(wanted.parent)
        name, number = wanted, 1
        while not (part.claim(name) or _same(part.path, name)):
            number += 1
            name = wanted.with_name(numbered(wanted.stem, f"{number}{wanted.suffix}"))
        if name != wanted and wanted.is_relative_to(output):
            others[wanted.relative_to(output).parts] = name.name
        sync_folder(name.parent)
    return others


def numbered(stem: str, rest: str) -> str:
    """A file name, its stem cut so that it may be one."""
    while len(os.fsencode(stem + rest)) > MAX_PART_BYTES and stem:
        stem = stem[:-1]
    return stem + rest


def _same(staged: Path, name: Path) -> bool:
    return name.exists() and os.path.samefile(staged, name)
