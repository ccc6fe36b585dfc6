"""All pictures in the output folder: newest first, with their settings, and a bin."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as Refused

from loraloom.atomic_file import explained, make_folder, rename
from loraloom.confined import open_regular
from loraloom.errors import InputError, LoraloomError
from loraloom.folders import is_shown
from loraloom.server import decoding, paths
from loraloom.server.page_routes.drawing import WorkflowForms, forms_in
from loraloom.server.pictures import PICTURE_SUFFIXES, thumbnail
from loraloom.server.state import ServerState
from loraloom.workflow.drawing import settings_of, title_of
from loraloom.workflow.implemented import known_schemas
from loraloom.workflow.pictures import picture_texts
from loraloom.workflow.sources import workflows_of

BIN = ".bin"
"""Folder in the output folder that keeps what was deleted; lists leave it out, as every hidden folder."""

MAX_LISTED = 100_000
_MAX_BYTES = 64 * 1024 * 1024
_OUR_TEXT = "loraloom"


class Picture(BaseModel):
    filename: str
    subfolder: str
    modified: float
    size: int


class PictureList(BaseModel):
    pictures: list[Picture]
    total: int


class PictureFacts(BaseModel):
    """title: its prompt. settings: those of a drawing, where its workflow amounts to one."""

    filename: str
    subfolder: str
    modified: float
    size: int
    width: int
    height: int
    title: str
    settings: dict[str, Any] | None
    receipts: list[dict[str, Any]]
    has_workflow: bool
    texts: dict[str, str] = Field(description="What other programs wrote into the file.")


class Names(BaseModel):
    """Pictures by their places in the output folder ("folder/name.png")."""

    model_config = ConfigDict(extra="forbid")
    names: list[str] = Field(max_length=10_000)


class Moved(BaseModel):
    names: list[str] = Field(description="Where they are now.")


def add(api: FastAPI, state: ServerState) -> None:
    _add_reading(api, state)
    _add_bin(api, state)


def _add_reading(api: FastAPI, state: ServerState) -> None:
    @api.get("/pictures")
    async def pictures(
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 200,
        offset: Annotated[int, Query(ge=0, le=MAX_LISTED)] = 0,
        bin: bool = False,
    ) -> PictureList:
        """Pictures in the output folder, the newest first; with `bin`, those that were deleted."""
        root = state.settings.output_dir
        found = await asyncio.to_thread(listed, root / BIN if bin else root, BIN if bin else "")
        return PictureList(pictures=found[offset : offset + limit], total=len(found))

    @api.get("/pictures/thumbnail", responses={404: {}})
    async def small(
        request: Request, name: str, subfolder: str = "", type: str = "output",
        width: Annotated[int, Query(ge=16, le=2048)] = 256,
    ) -> Response:  # fmt: skip
        """A picture made small, as WebP."""
        root = state.settings.folder(type)
        if root is None:
            raise HTTPException(400, f"there is no folder {type[:40]!r}; known: output, input, temp")
        path = paths.inside(root, f"{subfolder}/{name}".strip("/"))
        return await thumbnail(request, path, width, state.settings.max_pixels)

    @api.get("/pictures/facts", responses={404: {}})
    async def facts(name: str) -> PictureFacts:
        """What a picture says of itself."""
        return await asyncio.to_thread(facts_of, state, picture_path(state, name), name)

    @api.get("/pictures/workflows", responses={400: {}, 404: {}})
    async def workflows(name: str) -> WorkflowForms:
        """The workflow in a picture, as a form."""
        path = picture_path(state, name)
        content = await asyncio.to_thread(_content, path)
        return await asyncio.to_thread(forms_in, content, path.name, state)


def _add_bin(api: FastAPI, state: ServerState) -> None:
    root = state.settings.output_dir

    @api.post("/pictures/delete", responses={404: {}})
    async def delete(which: Names) -> Moved:
        """Move pictures into the bin."""
        return Moved(names=await asyncio.to_thread(_move, root, root / BIN, BIN, which.names))

    @api.post("/pictures/restore", responses={404: {}})
    async def restore(which: Names) -> Moved:
        """Move pictures out of the bin, to where they were ("folder/name.png", without the bin)."""
        return Moved(names=await asyncio.to_thread(_move, root / BIN, root, "", which.names))

    @api.post("/pictures/empty-bin", status_code=204)
    async def empty() -> None:
        """Delete for good what is in the bin."""
        place = root / BIN
        if place.is_dir() and not place.is_symlink():
            await asyncio.to_thread(shutil.rmtree, place, True)


def picture_path(state: ServerState, name: str) -> Path:
    """The file of a picture; HTTPException 400, 403, 404."""
    path = paths.inside(state.settings.output_dir, name)
    if path.suffix.lower() not in PICTURE_SUFFIXES or not path.is_file():
        raise HTTPException(404, f"there is no picture {name[:200]!r}")
    return path


def listed(root: Path, prefix: str) -> list[Picture]:
    """The pictures under a folder, hidden ones left out, the newest first."""
    found: list[Picture] = []
    waiting = [(str(root), prefix)]
    while waiting and len(found) < MAX_LISTED:
        folder, subfolder = waiting.pop()
        try:
            entries = [e for e in os.scandir(folder) if is_shown(e.name)]
        except OSError:
            continue
        for entry in entries:
            inner = f"{subfolder}/{entry.name}".strip("/")
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, inner))
            elif os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES:
                found += _listed(entry, subfolder)
    return sorted(found, key=lambda p: (-p.modified, p.filename))


def _listed(entry: os.DirEntry[str], subfolder: str) -> list[Picture]:
    """A file; nothing for pipes, links in a circle, and what is being deleted."""
    try:
        if not entry.is_file():
            return []
        stat = entry.stat()
    except OSError:
        return []
    return [Picture(filename=entry.name, subfolder=subfolder, modified=stat.st_mtime, size=stat.st_size)]


def facts_of(state: ServerState, path: Path, name: str) -> PictureFacts:
    try:
        with open_regular(path) as file:
            stat = os.fstat(file.fileno())
            content = file.read() if stat.st_size <= _MAX_BYTES else b""
            with decoding.opened(file, sys.maxsize) as picture:
                width, height = picture.size
    except (OSError, Refused) as error:
        raise HTTPException(404, "that file is no picture that can be read") from error
    try:
        texts = picture_texts(content)
    except (InputError, ValueError):
        texts = {}
    try:
        schemas = {**known_schemas(), **state.schemas}
        graph = workflows_of(content, path.name)[0].graph(schemas)
    except (LoraloomError, IndexError):
        graph = None
    settings = settings_of(graph) if graph else None
    folder, _, filename = name.replace("\\", "/").strip("/").rpartition("/")
    return PictureFacts(
        filename=filename, subfolder=folder, modified=stat.st_mtime, size=stat.st_size, width=width,
        height=height, title=title_of(graph) if graph else "",
        settings=asdict(settings) if settings else None,
        receipts=_receipts(texts.get(_OUR_TEXT, "")), has_workflow=graph is not None,
        texts={k: v[:4000] for k, v in texts.items() if k not in ("prompt", "workflow", _OUR_TEXT)},
    )  # fmt: skip


def _content(path: Path) -> bytes:
    """Of a picture that is still there. HTTPException 400, 404."""
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise HTTPException(404, "the picture cannot be read") from error
    if len(content) > _MAX_BYTES:
        raise HTTPException(400, "the picture is too large to look for its workflow")
    return content


def _receipts(text: str) -> list[dict[str, Any]]:
    try:
        found: Any = json.loads(text) if text else {}
        receipts = found.get("loras", found.get("receipts", [])) if isinstance(found, dict) else []
    except (ValueError, RecursionError):
        return []
    return [r for r in cast("list[Any]", receipts) if isinstance(r, dict)]


def _move(source: Path, target: Path, prefix: str, names: list[str]) -> list[str]:
    """Move files, folders and all, without ever taking another's place; their new names."""
    moved: list[str] = []
    for name in names:
        path = paths.inside(source, name)
        if path.suffix.lower() not in PICTURE_SUFFIXES or not path.is_file():
            raise HTTPException(404, f"there is no picture {name[:200]!r}")
        parts = paths.parts_of(name)
        if parts[0] == BIN:
            raise HTTPException(400, "that picture is in the bin already")
        place = target.joinpath(*parts)
        make_folder(place.parent)
        free, count = place, 1
        while free.exists():
            free, count = place.with_name(f"{place.stem} ({count}){place.suffix}"), count + 1
        with explained(free):
            rename(path, free)
        moved.append("/".join([*([prefix] if prefix else []), *parts[:-1], free.name]))
    return moved
