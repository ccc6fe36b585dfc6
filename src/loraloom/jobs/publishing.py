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
from pathlib import Path
from typing import Any, TypeAlias, cast

from loraloom.atomic_file import PartFile, make_folder, sync_folder
from loraloom.jobs.store import Store

Commit: TypeAlias = "Callable[[Callable[[Store], None]], Awaitable[None]]"
Files: TypeAlias = "Sequence[tuple[str, str]]"
"""(passing name, own name) of each."""


async def publish(commit: Commit, job_id: str, files: Files) -> Mapping[str, str]:
    """Give the files of a job's committed result their names. A name that somebody else has taken meanwhile
    is left to them: those that are called otherwise, by the name that they should have had."""
    others = await asyncio.to_thread(_give_names, files)
    await commit(lambda s: _done(s, job_id, files, others))
    await asyncio.to_thread(discard, files)
    return others


async def resume(commit: Commit, waiting: Iterable[tuple[str, str, str]], folder: Path | None) -> None:
    """Finish what a former server had begun; what else lies in the folder of passing names is deleted.

    waiting: `Store.publications`."""
    files: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for job_id, staged, final in waiting:
        files[job_id].append((staged, final))
    for job_id, of_job in files.items():
        await publish(commit, job_id, of_job)
    if folder is not None and folder.is_dir():
        await asyncio.to_thread(lambda: discard([(str(path), "") for path in folder.iterdir()]))


def discard(files: Files) -> None:
    """Delete the passing names."""
    for staged, _ in files:
        with suppress(OSError):
            Path(staged).unlink(missing_ok=True)


def with_names(value: Any, others: Mapping[str, str]) -> Any:
    """JSON that names results as ComfyUI does, with other names for some."""
    if isinstance(value, list):
        return [with_names(item, others) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    known = cast("dict[str, Any]", value)
    for old, new in others.items():
        place = Path(old)
        folder = str(known.get("subfolder", ""))
        if known.get("filename") == place.name and place.parent.as_posix().endswith(folder):
            return {**known, "filename": Path(new).name}
    return {k: with_names(v, others) for k, v in known.items()}


def _done(store: Store, job_id: str, files: Files, others: Mapping[str, str]) -> None:
    if others:
        store.rewrite(job_id, lambda value: with_names(value, others))
    store.published([staged for staged, _ in files])


def _give_names(files: Files) -> dict[str, str]:
    others: dict[str, str] = {}
    for staged, final in files:
        part, wanted = PartFile(Path(staged)), Path(final)
        if not part.path.exists():
            continue  # where there are no hard links it had its name already
        make_folder(wanted.parent)
        name, number = wanted, 1
        while not (part.claim(name) or _same(part.path, name)):
            number += 1
            name = wanted.with_name(f"{wanted.stem}{number}{wanted.suffix}")
        if name != wanted:
            others[final] = str(name)
        sync_folder(name.parent)
    return others


def _same(staged: Path, name: Path) -> bool:
    return name.exists() and os.path.samefile(staged, name)
