"""Pictures that carry texts, made byte by byte or by Pillow as ComfyUI's nodes make them."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image, PngImagePlugin


def png(texts: dict[str, str], kind: str = "tEXt") -> bytes:
    """A PNG with text chunks of one kind."""
    out = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))]
    for keyword, text in texts.items():
        key, body = keyword.encode(), text.encode()
        if kind == "tEXt":
            out.append(_chunk(b"tEXt", key + b"\0" + body))
        elif kind == "zTXt":
            out.append(_chunk(b"zTXt", key + b"\0\0" + zlib.compress(body)))
        elif kind == "iTXt":
            out.append(_chunk(b"iTXt", key + b"\0\0\0en\0key\0" + body))
        else:
            out.append(_chunk(b"iTXt", key + b"\0\1\0\0\0" + zlib.compress(body)))
    return b"".join([*out, _chunk(b"IDAT", zlib.compress(b"\0\0\0\0")), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def png_by_pillow(texts: dict[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    out = io.BytesIO()
    Image.new("RGB", (2, 2)).save(out, "PNG", pnginfo=info, compress_level=4)
    return out.getvalue()


def with_exif(container: str, tags: dict[int, str]) -> bytes:
    """A WebP or JPEG whose Exif tags hold texts, as SaveAnimatedWEBP and the editor read them."""
    picture = Image.new("RGB", (2, 2))
    exif = picture.getexif()
    for tag, text in tags.items():
        exif[tag] = text
    out = io.BytesIO()
    picture.save(out, container, exif=exif)
    return out.getvalue()
