"""ComfyUI's routes for pictures: view and upload."""

from __future__ import annotations

import asyncio
import hashlib
import json
import mimetypes
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loraloom.atomic_file import part_file
from loraloom.folders import IMAGE_SUFFIXES, is_shown
from loraloom.server import decoding, paths
from loraloom.server.answers import Answer
from loraloom.server.file_answers import SANDBOX, served
from loraloom.server.state import ServerState, state_of
from loraloom.workflow.graph import JSON

_PIECE_BYTES = 1 << 20


async def view(request: Request) -> Response:
    query = request.query_params
    name, kind = paths.annotated(query.get("filename", ""), query.get("type", "output"))
    root, parts = _place(state_of(request), kind, query.get("subfolder", ""), name)
    if not parts:
        raise HTTPException(404)
    file = paths.opened(root, "/".join(parts))
    suffix = os.path.splitext(parts[-1])[1].lower()
    changed = query.get("preview") or query.get("channel") in ("rgb", "a")
    if not changed or suffix not in IMAGE_SUFFIXES:
        return served(file, parts[-1])
    preview, channel = query.get("preview", ""), query.get("channel", "rgba")
    limit = state_of(request).settings.max_pixels
    with file:
        body, media_type = await decoding.in_turn(decoding.converted, file, preview, channel, limit)
    return Response(body, media_type=media_type, headers=SANDBOX)


async def upload_image(request: Request) -> Response:
    return await _upload(request, lambda upload, _form: pieces(upload))


async def upload_mask(request: Request) -> Response:
    state = state_of(request)

    def with_mask(upload: BinaryIO, form: dict[str, str]) -> Iterable[bytes]:
        with _original(state, form.get("original_ref", "")) as original:
            return [decoding.masked(original, upload, state.settings.max_pixels)]

    return await _upload(request, with_mask)


async def _upload(
    request: Request, change: Callable[[BinaryIO, dict[str, str]], Iterable[bytes]]
) -> Response:
    """Check that an upload is a picture, and store it under its name or the next free one."""
    state = state_of(request)
    declared = request.headers.get("content-length", "")
    if not (declared.isascii() and declared.isdigit()):
        raise HTTPException(411, "an upload must say its length")
    if int(declared) > state.settings.max_upload:
        raise HTTPException(413, f"uploads may have at most {state.settings.max_upload} bytes")
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(400, "an upload is a multipart form with a file named image")
    async with request.form(max_files=1, max_fields=20, max_part_size=1 << 20) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile) or not image.filename:
            raise HTTPException(400, "the form has no file named image")
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        kind = fields.get("type") or "input"
        root, parts = _place(state, kind, fields.get("subfolder", ""), "")
        filename = image.filename
        overwrite = fields.get("overwrite") in ("true", "1")
        upload = image.file

        def store() -> str:
            name = _safe_name(filename, decoding.check(upload, state.settings.max_pixels))
            upload.seek(0)
            with paths.folder_inside(root, parts, make=True) as folder:
                return store_file(folder, root.joinpath(*parts), name, change(upload, fields), overwrite)

        found = await decoding.in_turn(store)
    return Answer({"name": found, "subfolder": "/".join(parts), "type": kind})


def _place(state: ServerState, kind: str, subfolder: str, name: str) -> tuple[Path, list[str]]:
    """The folder that `kind` means, and the parts of the name under it."""
    root = state.settings.folder(kind)
    if root is None:
        raise HTTPException(400, f"there is no folder {kind[:40]!r}; known: output, input, temp")
    return root, paths.parts_of(f"{subfolder}/{name}".strip("/") if subfolder else name)


def _safe_name(filename: str, kind: str) -> str:
    """The last part of an uploaded file's name, as a name every system allows.

    kind: the suffix of what it is, for names without one (browsers call pasted pictures "blob").
    HTTPException 400 for the suffix of something else."""
    bare = filename.replace("\\", "/").rpartition("/")[2]
    name = re.sub(r"[^\w\-. ()\[\]]", "_", bare).strip(". ")
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in IMAGE_SUFFIXES:
        if mimetypes.guess_type(name)[0] is not None:
            raise HTTPException(400, f"uploads are pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
        stem, suffix = name, kind
    while len((stem + suffix).encode()) > paths.MAX_PART_BYTES - 10:
        stem = stem[:-1]
    paths.parts_of(stem + suffix)
    return (stem or "picture") + suffix


def pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def store_file(folder: Path, named: Path, name: str, content: Iterable[bytes], overwrite: bool) -> str:
    """Write a file whole; the name that it has got. A file that is there already with this content stays."""
    stem, suffix = os.path.splitext(name)
    with part_file(folder, content, named=named) as part:
        if overwrite:
            part.replace(folder / name)
            return name
        digest = _digest(part.path)
        for count in range(10_000):
            candidate = name if count == 0 else f"{stem} ({count}){suffix}"
            if part.claim(folder / candidate) or _digest(folder / candidate) == digest:
                return candidate
    raise HTTPException(409, "there are too many files of that name")


def _digest(path: Path) -> bytes:
    """Of a file's content; nothing for a link or what is no file."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return b""
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""


def _original(state: ServerState, text: str) -> BinaryIO:
    try:
        reference: Any = json.loads(text)
        kind = str(reference.get("type", "output"))
        root, parts = _place(state, kind, str(reference.get("subfolder", "")), str(reference["filename"]))
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise HTTPException(
            400, "original_ref must be a JSON object with filename, subfolder, type"
        ) from error
    if not parts or os.path.splitext(parts[-1])[1].lower() not in IMAGE_SUFFIXES:
        raise HTTPException(404, "the original picture is not there")
    return paths.opened(root, "/".join(parts))


async def internal_files(request: Request) -> Response:
    """Names of the files in a folder, the latest first, as the editor's file lists want them."""
    kind = str(request.path_params["kind"])
    root = state_of(request).settings.folder(kind)
    if root is None:
        raise HTTPException(400, f"there is no folder {kind[:40]!r}")

    def names() -> list[JSON]:
        there = os.scandir(root) if root.is_dir() else ()
        entries = [e for e in there if is_shown(e.name) and e.is_file(follow_symlinks=False)]
        found: list[tuple[float, str]] = []
        for entry in entries:
            with suppress(FileNotFoundError):  # it has just been taken away
                found.append((entry.stat(follow_symlinks=False).st_mtime, entry.name))
        return [f"{name} [{kind}]" for _, name in sorted(found, reverse=True)[:5000]]

    return Answer(await asyncio.to_thread(names))


def sweep(folder: Path, older_than_seconds: float) -> None:
    """Remove temporary pictures of former times; links are not followed, nor is the folder when it is one."""
    limit = time.time() - older_than_seconds
    if folder.is_symlink():
        return
    waiting = [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < limit:
                os.unlink(entry.path)


def routes() -> list[Route]:
    return [
        Route("/view", view, methods=["GET"]),
        Route("/upload/image", upload_image, methods=["POST"]),
        Route("/upload/mask", upload_mask, methods=["POST"]),
    ]
