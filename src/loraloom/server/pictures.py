"""Pictures made smaller, for lists of them."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from loraloom.confined import open_regular
from loraloom.file_identity import FileIdentity
from loraloom.server.decoding import in_turn, opened
from loraloom.server.file_answers import SANDBOX, freshness, is_known

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif"})
MAX_PREVIEW = 1024


BESIDE = (".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp", ".preview.gif",
          ".png", ".jpg", ".jpeg", ".webp", ".gif")  # fmt: skip
"""What follows a model's stem in the names of its pictures, the best first."""


def picture_beside(folder: Path, stem: str) -> Path | None:
    """The picture of the model "folder/stem.safetensors"."""
    return next((path for suffix in BESIDE if (path := folder / (stem + suffix)).is_file()), None)


async def thumbnail(request: Request, path: Path, width: int, max_pixels: int) -> Response:
    """A picture at most `width` pixels wide and high, as WebP. HTTPException 404 for what is none."""
    try:
        identity = FileIdentity.of(path)
    except OSError as error:
        raise HTTPException(404) from error
    headers = {**freshness(identity, width), **SANDBOX}
    if is_known(request.headers, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    body = await in_turn(_small, identity, width, max_pixels)
    return Response(body, media_type="image/webp", headers=headers)


@lru_cache(maxsize=512)
def _small(picture: FileIdentity, width: int, max_pixels: int) -> bytes:
    try:
        with open_regular(picture.path) as file, opened(file, max_pixels) as found:
            found.draft("RGB", (width, width))
            small = found.convert("RGBA" if "A" in found.getbands() else "RGB")
    except HTTPException as error:
        raise HTTPException(404, error.detail) from error
    except OSError as error:
        raise HTTPException(404) from error
    small.thumbnail((width, width))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=84)
    return buffer.getvalue()


def as_png(content: bytes, max_pixels: int) -> bytes:
    """A picture of an upload as a plain PNG of at most `MAX_PREVIEW` pixels on a side.

    HTTPException 400 for what is no picture, 413 for one that is too large."""
    with opened(io.BytesIO(content), max_pixels) as picture:
        plain = picture.convert("RGB")
    plain.thumbnail((MAX_PREVIEW, MAX_PREVIEW))
    buffer = io.BytesIO()
    plain.save(buffer, "PNG")
    return buffer.getvalue()
