"""ComfyUI's routes for pictures: view and upload."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import mimetypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from loraloom.atomic_file import part_file, write_file
from loraloom.folders import IMAGE_SUFFIXES
from loraloom.server import paths
from loraloom.server.answers import Answer
from loraloom.server.state import ServerState, state_of
from loraloom.workflow.graph import JSON

_INLINE = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"})
_SANDBOX = {"Content-Security-Policy": "default-src 'none'; sandbox"}
_PICTURES = {
    "PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tiff",
    "AVIF": ".avif",
}  # fmt: skip
"""Pillow's name of a kind of picture → its suffix."""


async def view(request: Request) -> Response:
    query = request.query_params
    name, kind = paths.annotated(query.get("filename", ""), query.get("type", "output"))
    path = _place(state_of(request), kind, query.get("subfolder", ""), name)
    if not path.is_file():
        raise HTTPException(404)
    changed = query.get("preview") or query.get("channel") in ("rgb", "a")
    if changed and path.suffix.lower() in IMAGE_SUFFIXES:
        preview, channel = query.get("preview", ""), query.get("channel", "rgba")
        limit = state_of(request).settings.max_pixels
        body, media_type = await asyncio.to_thread(_converted, path, preview, channel, limit)
        return Response(body, media_type=media_type, headers=_SANDBOX)
    return served(path)


def served(path: Path) -> Response:
    """A file of somebody's: shown when it is a picture, else only to be saved."""
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    inline = media_type in _INLINE
    return FileResponse(
        path,
        media_type=media_type if inline else "application/octet-stream",
        filename=path.name,
        content_disposition_type="inline" if inline else "attachment",
        headers=_SANDBOX,
    )


async def upload_image(request: Request) -> Response:
    return await _upload(request, lambda content, _form: content)


async def upload_mask(request: Request) -> Response:
    return await _upload(request, lambda content, form: _masked(request, content, form))


async def _upload(request: Request, change: Callable[[bytes, dict[str, str]], bytes]) -> Response:
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
        content = await image.read()
        filename = image.filename
    kind = fields.get("type") or "input"
    folder = _place(state, kind, fields.get("subfolder", ""), "")
    overwrite = fields.get("overwrite") in ("true", "1")

    def store() -> str:
        suffix = _check_picture(content, state.settings.max_pixels)
        return _store(folder, _safe_name(filename, suffix), change(content, fields), overwrite)

    found = await asyncio.to_thread(store)
    parts = "/".join(paths.parts_of(fields.get("subfolder", "")))
    return Answer({"name": found, "subfolder": parts, "type": kind})


def _place(state: ServerState, kind: str, subfolder: str, name: str) -> Path:
    root = state.settings.folder(kind)
    if root is None:
        raise HTTPException(400, f"there is no folder {kind[:40]!r}; known: output, input, temp")
    return paths.inside(root, f"{subfolder}/{name}".strip("/") if subfolder else name)


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


def _check_picture(content: bytes, max_pixels: int) -> str:
    """Decode an upload, within limits; the suffix of its kind. HTTPException 400 for what is no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=sorted(_PICTURES)) as picture:
            if picture.width * picture.height > max_pixels:
                raise HTTPException(413, f"the picture has more than {max_pixels} pixels")
            picture.load()
            return _PICTURES[picture.format or "PNG"]
    except HTTPException:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        MemoryError,
        OverflowError,
        Image.DecompressionBombError,
    ) as error:
        raise HTTPException(400, "the upload is no picture that can be read") from error


def _store(folder: Path, name: str, content: bytes, overwrite: bool) -> str:
    """Write a file whole; the name that it has got. A file that is there already with this content stays."""
    if overwrite:
        write_file(paths.inside(folder, name), content)
        return name
    stem, suffix = os.path.splitext(name)
    digest = hashlib.sha256(content).digest()
    with part_file(folder, content) as part:
        for count in range(10_000):
            candidate = name if count == 0 else f"{stem} ({count}){suffix}"
            if part.claim(folder / candidate) or _digest(folder / candidate) == digest:
                return candidate
    raise HTTPException(409, "there are too many files of that name")


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def _masked(request: Request, content: bytes, form: dict[str, str]) -> bytes:
    """The original picture with the uploaded mask as its transparency."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    original = _original(request, form.get("original_ref", ""))
    limit = state_of(request).settings.max_pixels
    with Image.open(original, formats=sorted(_PICTURES)) as picture, Image.open(io.BytesIO(content)) as mask:
        if picture.width * picture.height > limit:
            raise HTTPException(413, f"the picture has more than {limit} pixels")
        info = PngInfo()
        for key, value in cast("dict[str, Any]", getattr(picture, "text", {})).items():
            info.add_text(key, str(value))
        result = picture.convert("RGBA")
        alpha = mask.convert("RGBA").getchannel("A")
        result.putalpha(alpha.resize(result.size))
        buffer = io.BytesIO()
        result.save(buffer, "PNG", compress_level=4, pnginfo=info)
    return buffer.getvalue()


def _original(request: Request, text: str) -> Path:
    try:
        reference: Any = json.loads(text)
        kind = str(reference.get("type", "output"))
        path = _place(
            state_of(request), kind, str(reference.get("subfolder", "")), str(reference["filename"])
        )
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise HTTPException(
            400, "original_ref must be a JSON object with filename, subfolder, type"
        ) from error
    if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
        raise HTTPException(404, "the original picture is not there")
    return path


def _converted(path: Path, preview: str, channel: str, max_pixels: int) -> tuple[bytes, str]:
    """A picture as a smaller file (`preview` is "webp;90" or "jpeg;80") or with only some channels."""
    from PIL import Image

    try:
        with Image.open(path, formats=sorted(_PICTURES)) as opened:
            if opened.width * opened.height > max_pixels:
                raise HTTPException(413, f"the picture has more than {max_pixels} pixels")
            picture: Image.Image = opened.copy()
    except (OSError, ValueError, SyntaxError) as error:
        raise HTTPException(404, "that file is no picture that can be read") from error
    if channel == "rgb":
        picture = picture.convert("RGB")
    elif channel == "a":
        alpha = picture.convert("RGBA").getchannel("A")
        picture = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture.putalpha(alpha)
    kind, _, quality_text = preview.partition(";")
    quality = int(quality_text) if quality_text.isascii() and quality_text.isdigit() else 90
    buffer = io.BytesIO()
    if kind == "jpeg":
        picture.convert("RGB").save(buffer, "JPEG", quality=min(quality, 100))
        return buffer.getvalue(), "image/jpeg"
    if preview:
        picture.convert("RGBA").save(buffer, "WEBP", quality=min(quality, 100))
        return buffer.getvalue(), "image/webp"
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), "image/png"


async def internal_files(request: Request) -> Response:
    """Names of the files in a folder, the latest first, as the editor's file lists want them."""
    kind = str(request.path_params["kind"])
    root = state_of(request).settings.folder(kind)
    if root is None:
        raise HTTPException(400, f"there is no folder {kind[:40]!r}")

    def names() -> list[JSON]:
        entries = (
            [e for e in os.scandir(root) if e.is_file() and not e.name.startswith(".")]
            if root.is_dir()
            else []
        )
        entries.sort(key=lambda e: -e.stat().st_mtime)
        return [f"{entry.name} [{kind}]" for entry in entries[:5000]]

    return Answer(await asyncio.to_thread(names))


def sweep(folder: Path, older_than_seconds: float) -> None:
    """Remove temporary pictures of former times."""
    limit = time.time() - older_than_seconds
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and path.stat().st_mtime < limit:
            path.unlink(missing_ok=True)


def routes() -> list[Route]:
    return [
        Route("/view", view, methods=["GET"]),
        Route("/upload/image", upload_image, methods=["POST"]),
        Route("/upload/mask", upload_mask, methods=["POST"]),
    ]
