"""The LoRA library: what there is, what each file is, and changes to its name, notes and picture."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from loraloom.atomic_file import make_folder
from loraloom.server import paths
from loraloom.server.bodies import read_bytes, save_body
from loraloom.server.decoding import in_turn
from loraloom.server.file_routes import pieces, store_file
from loraloom.server.pictures import as_png, picture_beside, thumbnail
from loraloom.server.state import ServerState
from loraloom.workflow.graph import JSON

_ENDINGS = (".safetensors", ".sft")


class LoraEntry(BaseModel):
    """One file. family, base: what it is for, "" where unknown. preview: when its picture changed, or 0.

    problem: why it cannot be used, if so. alike: equal for files whose tensors are most likely equal.
    """

    name: str
    size: int
    modified: float
    family: str
    base: str
    title: str
    rank: str
    algebra: str
    triggers: list[str]
    tags: list[str]
    notes: str
    preview: float
    alike: str
    strength: float | None = Field(description="The one that its user prefers, where noted.")
    problem: str


class LoraList(BaseModel):
    """loras: those that are new or were read since the version asked for. read: of `total` files. whole: that
    version is not known any more, and these are all that there are."""

    loras: list[LoraEntry]
    gone: list[str]
    version: int
    read: int
    total: int
    whole: bool


class LoraHashes(BaseModel):
    hashes: dict[str, str]
    duplicates: list[str] = Field(description="Files with equal tensors.")


class LoraChange(BaseModel):
    """Another name ("folder/name.safetensors"), or notes; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    new_name: str | None = None
    description: str | None = Field(None, max_length=20_000)
    activation_text: str | None = Field(None, max_length=2_000, description="Trigger words of your own.")
    preferred_weight: float | None = Field(None, ge=-100, le=100)
    notes: str | None = Field(None, max_length=20_000)


class Done(BaseModel):
    name: str


def directories(state: ServerState) -> list[JSON]:
    return [str(directory) for directory in state.files.folders.directories("loras")]


def lora_path(state: ServerState, name: str) -> Path:
    """The file of a LoRA; HTTPException 400, 403, 404 for a name that is none."""
    paths.parts_of(name)
    path = state.files.folders.find("loras", name)
    if path is None:
        raise HTTPException(404, f"there is no LoRA {name[:200]!r}")
    return path


def _file_name(name: str) -> str:
    """The name for a LoRA that is sent; HTTPException 400 for one that no LoRA has."""
    parts = paths.parts_of(name)
    if not parts or Path(parts[-1]).suffix.lower() not in _ENDINGS:
        last = parts[-1][:100] if parts else ""
        raise HTTPException(
            400,
            f"{last!r} does not end in .safetensors. A pickle (.pt, .ckpt, .bin) can run code when it is "
            "opened and is never read: loraloom models convert makes a safetensors file of one.",
        )
    return parts[-1]


def _stored(file: Path, folder: Path) -> str:
    """Copy a file into a folder; the name that it has got there."""
    make_folder(folder)
    with open(file, "rb") as content:
        return store_file(folder, folder, file.name, pieces(content), overwrite=False)


def add(api: FastAPI, state: ServerState) -> None:
    _add_reading(api, state)
    _add_changing(api, state)


def _add_reading(api: FastAPI, state: ServerState) -> None:
    listed = False

    @api.get("/loras")
    async def loras(since: Annotated[int, Query(ge=0)] = 0, scan: bool = False) -> LoraList:
        """The LoRA files. They are read in the background: ask again with `since` until all are."""
        nonlocal listed
        fresh = scan or not listed or since == 0
        listed = True
        return LoraList(
            **await state.library.ask("list", since=since, scan=fresh, directories=directories(state))
        )

    @api.get("/loras/inspect", responses={404: {}})
    async def inspect(name: str, base: str = "", base_kind: str = "checkpoints") -> dict[str, Any]:
        """Everything that a file's header and sidecars say; with a base, how it fits that."""
        lora_path(state, name)
        place = state.files.folders.find(base_kind, base) if base else None
        where = None if place is None else str(place)
        found: dict[str, Any] = await state.library.ask(
            "inspect", name=name, base=where, directories=directories(state)
        )
        return {**found, "file": name, "previews": [Path(p).name for p in found["previews"]]}

    @api.get("/loras/hashes", responses={404: {}})
    async def hashes(name: str) -> LoraHashes:
        """A file's hashes, and its duplicates. Large files take a moment the first time."""
        lora_path(state, name)
        return LoraHashes(**await state.library.ask("hashes", name=name, directories=directories(state)))

    @api.get("/loras/preview", responses={404: {}})
    async def preview(
        request: Request, name: str, width: Annotated[int, Query(ge=16, le=2048)] = 256
    ) -> Response:
        """The picture beside a LoRA, at most `width` pixels wide, as WebP."""
        path = lora_path(state, name)
        picture = picture_beside(path.parent, path.stem)
        if picture is None:
            raise HTTPException(404, "there is no picture beside this LoRA")
        return await thumbnail(request, picture, width, state.settings.max_pixels)


def _add_changing(api: FastAPI, state: ServerState) -> None:
    @api.post("/loras", status_code=201, responses={400: {}, 413: {}, 507: {}},
              openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {
                  "schema": {"type": "string"}}}}})  # fmt: skip
    async def put(request: Request, name: str) -> Done:
        """Add a file to the library: the body is a LoRA as safetensors. Of its name only the last part
        counts; where that is taken by another file it gets a number."""
        file_name = _file_name(name)
        folder = next(iter(state.files.folders.searched("loras")), None)
        if folder is None:
            raise HTTPException(400, "this server has no models folder; start it with --models FOLDER")
        folder = next(iter(state.files.folders.directories("loras")), folder)
        with tempfile.TemporaryDirectory(prefix="lora-", dir=state.settings.temp_dir) as place:
            received = Path(place, file_name)
            await save_body(request, received, state.settings.max_lora)
            await state.library.ask("check", file=str(received))
            stored = await asyncio.to_thread(_stored, received, folder)
        state.files.forget()
        await state.library.ask("scan", directories=directories(state))
        return Done(name=stored)

    @api.patch("/loras", responses={400: {}, 404: {}})
    async def change(name: str, to: LoraChange) -> Done:
        """Rename a file with all that lies beside it, or write its notes."""
        lora_path(state, name)
        said = to.model_dump(exclude_none=True)
        new_name = said.pop("new_name", None)
        where = directories(state)
        if said:
            values: JSON = {key.replace("_", " "): value for key, value in said.items()}
            await state.library.ask("note", name=name, values=values, directories=where)
        if new_name is not None and new_name != name:
            new_name = "/".join(paths.parts_of(new_name))
            if not new_name:
                raise HTTPException(400, "that is no file name")
            await state.library.ask("rename", name=name, new_name=new_name, directories=where)
            state.files.forget()
        await state.library.ask("scan", directories=where)
        return Done(name=new_name or name)

    @api.put("/loras/preview", responses={400: {}, 404: {}, 413: {}},
             openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {
                 "schema": {"type": "string"}}}}})  # fmt: skip
    async def set_preview(request: Request, name: str) -> Done:
        """Give a LoRA a picture: the body is a PNG, JPEG or WebP."""
        lora_path(state, name)
        body = await read_bytes(request, state.settings.max_upload)
        picture = await in_turn(as_png, body, state.settings.max_pixels)
        where = directories(state)
        await state.library.ask("preview", picture, name=name, directories=where)
        await state.library.ask("scan", directories=where)
        return Done(name=name)
