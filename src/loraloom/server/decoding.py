"""Pictures of strangers: checked, made smaller, masked. Few at a time, and each in memory once.

A PNG of 250 kB may hold 64 million pixels, which are 256 MB when they are decoded; a copy or two of that for
each of some requests at once is what ends a server.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, ParamSpec, TypeVar, cast

from starlette.exceptions import HTTPException

from loraloom.server.release import LARGE_BYTES, RELEASE

if TYPE_CHECKING:
    from PIL import Image

SUFFIX_OF = {
    "PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tiff",
    "AVIF": ".avif",
}  # fmt: skip
"""Pillow's name of a kind of picture → its suffix."""
PREVIEW_SIDE = 2048
_POOL = ThreadPoolExecutor(2, "loraloom-pictures")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


async def in_turn(
    function: Callable[Arguments, Result], *args: Arguments.args, **more: Arguments.kwargs
) -> Result:
    """Run what decodes a picture in a thread, when less than two others do."""
    try:
        return await asyncio.get_running_loop().run_in_executor(_POOL, lambda: function(*args, **more))
    finally:
        RELEASE.after(LARGE_BYTES)


@contextmanager
def opened(file: BinaryIO, max_pixels: int) -> Generator[Image.Image]:
    """A picture, not decoded yet. Raises HTTPException 413 for one with too many pixels, 400 for what cannot
    be read, also when it turns out while it is decoded."""
    from PIL import Image

    try:
        with Image.open(file, formats=[*SUFFIX_OF]) as picture:
            if picture.width * picture.height > max_pixels:
                raise HTTPException(413, f"the picture has more than {max_pixels} pixels")
            yield picture
    except HTTPException:
        raise
    except Exception as error:  # on damage Pillow lets through whatever the libraries of its formats raise
        raise HTTPException(400, "that is no picture that can be read") from error


def check(file: BinaryIO, max_pixels: int) -> str:
    """Decode a picture to its end; the suffix of its kind. Raises what `opened` raises."""
    with opened(file, max_pixels) as picture:
        picture.load()
        return SUFFIX_OF[picture.format or "PNG"]


def converted(file: BinaryIO, preview: str, channel: str, max_pixels: int) -> tuple[bytes, str]:
    """A picture for a page, and its media type.

    preview: "webp;90" or "jpeg;80", at most PREVIEW_SIDE pixels a side; "" keeps the size. channel: "rgb"
    without its transparency, "a" that alone, else as it is."""
    with opened(file, max_pixels) as picture:
        if preview:
            # JPEG files are decoded at a fraction of their size, others shrunk as soon as they are.
            picture.draft(None, (PREVIEW_SIDE, PREVIEW_SIDE))
            picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        shown = _of_channel(picture, channel)
        return _encoded(shown, preview)


def masked(file: BinaryIO, mask: BinaryIO, max_pixels: int) -> bytes:
    """The picture as PNG, its texts kept, with the transparency of the mask."""
    from PIL.PngImagePlugin import PngInfo

    with opened(mask, max_pixels) as given:
        alpha = _alpha(given)
    with opened(file, max_pixels) as picture:
        info = PngInfo()
        for key, value in cast("dict[str, Any]", getattr(picture, "text", {})).items():
            info.add_text(key, str(value))
        result = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        result.putalpha(alpha.resize(result.size))
        buffer = io.BytesIO()
        result.save(buffer, "PNG", compress_level=4, pnginfo=info)
    return buffer.getvalue()


def _of_channel(picture: Image.Image, channel: str) -> Image.Image:
    from PIL import Image

    if channel == "rgb":
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    if channel == "a":
        alpha = _alpha(picture)
        shown = Image.new("RGBA", alpha.size, (0, 0, 0, 255))
        shown.putalpha(alpha)
        return shown
    return picture


def _alpha(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode in ("RGBA", "LA"):
        return picture.getchannel("A")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return Image.new("L", picture.size, 255)
    return picture.convert("RGBA").getchannel("A")


def _encoded(picture: Image.Image, preview: str) -> tuple[bytes, str]:
    kind, _, quality_text = preview.partition(";")
    is_number = quality_text.isascii() and quality_text.isdigit() and len(quality_text) < 4
    quality = min(int(quality_text), 100) if is_number else 90
    buffer = io.BytesIO()
    if kind == "jpeg":
        (picture if picture.mode in ("RGB", "L") else picture.convert("RGB")).save(
            buffer, "JPEG", quality=quality
        )
        return buffer.getvalue(), "image/jpeg"
    if preview:
        (picture if picture.mode in ("RGB", "RGBA") else picture.convert("RGBA")).save(
            buffer, "WEBP", quality=quality
        )
        return buffer.getvalue(), "image/webp"
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), "image/png"
