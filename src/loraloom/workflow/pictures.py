"""The workflows that pictures carry: PNG text chunks, Exif of WebP and JPEG.

Only the containers are read, with limits on every length; the pixels are never decoded.
"""

from __future__ import annotations

import struct
import zlib

from loraloom.errors import InputError

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
MAX_TEXT = 16 * 1024 * 1024
_TIFF_ASCII = {0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298}
_USER_COMMENT, _EXIF_IFD = 0x9286, 0x8769


def is_picture(data: bytes) -> bool:
    """Whether the bytes are of a picture that may carry a workflow."""
    return data.startswith((PNG, JPEG)) or _is_webp(data)


def picture_texts(data: bytes) -> dict[str, str]:
    """The texts that a picture carries, by keyword (`prompt`, `workflow`, …).

    Raises InputError if the file is not what its first bytes say, or a text is larger than allowed.
    """
    if data.startswith(PNG):
        return _png_texts(data)
    if data.startswith(JPEG):
        return _jpeg_texts(data)
    if _is_webp(data):
        return _webp_texts(data)
    raise InputError("not a PNG, WebP or JPEG picture")


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _png_texts(data: bytes) -> dict[str, str]:
    out: dict[str, str] = {}
    position = len(PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        if len(body) < length:
            raise InputError(
                f"the PNG is cut short: chunk {kind!r} should have {length} bytes and has {len(body)}"
            )
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, text = _png_text(kind, body)
            out.setdefault(keyword, text)
        elif kind == b"eXIf":
            for keyword, text in _exif_texts(body).items():
                out.setdefault(keyword, text)
        elif kind == b"IEND":
            break
        position += 12 + length
    return out


def _png_text(kind: bytes, body: bytes) -> tuple[str, str]:
    keyword, _, rest = body.partition(b"\0")
    name = keyword.decode("latin-1")
    if kind == b"tEXt":
        return name, _decode(_limited(rest, name))
    if kind == b"zTXt":
        return name, _decode(_inflate(rest[1:], name))
    packed, rest = rest[:1] == b"\1", rest[2:]
    _, _, rest = rest.partition(b"\0")
    _, _, rest = rest.partition(b"\0")
    return name, _decode(_inflate(rest, name) if packed else _limited(rest, name))


def _limited(raw: bytes, name: str) -> bytes:
    if len(raw) > MAX_TEXT:
        raise InputError(f"the PNG's text {name!r} is larger than {MAX_TEXT >> 20} MB; no workflow is")
    return raw


def _inflate(raw: bytes, name: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        out = unpacker.decompress(raw, MAX_TEXT + 1)
    except zlib.error as error:
        raise InputError(f"the PNG's text {name!r} is damaged: {error}") from error
    return _limited(out, name)


def _decode(raw: bytes) -> str:
    """Texts are UTF-8 in practice, whatever the chunk's kind prescribes."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _webp_texts(data: bytes) -> dict[str, str]:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return _exif_texts(data[position + 8 : position + 8 + length])
        position += 8 + length + (length & 1)
    return {}


def _jpeg_texts(data: bytes) -> dict[str, str]:
    out: dict[str, str] = {}
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xFF:
            position += 1
            continue
        if marker in (0xD9, 0xDA) or length < 2:
            break
        body = data[position + 4 : position + 2 + length]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            out.update(_exif_texts(body))
        elif marker == 0xFE:
            _add(out, "comment", _decode(body))
        position += 2 + length
    return out


def _exif_texts(body: bytes) -> dict[str, str]:
    """Texts of an Exif block; a text `prompt:{…}` is named by what stands before its colon."""
    if body.startswith(b"Exif\0\0"):
        body = body[6:]
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None or len(body) < 8:
        return {}
    out: dict[str, str] = {}
    pending = [struct.unpack_from(order + "I", body, 4)[0]]
    seen: set[int] = set()
    while pending and len(seen) < 64:
        offset = pending.pop()
        if offset in seen or offset + 2 > len(body):
            continue
        seen.add(offset)
        count = struct.unpack_from(order + "H", body, offset)[0]
        for index in range(count):
            entry = offset + 2 + 12 * index
            if entry + 12 > len(body):
                break
            tag, kind, size = struct.unpack_from(order + "HHI", body, entry)
            value = struct.unpack_from(order + "I", body, entry + 8)[0]
            if tag == _EXIF_IFD:
                pending.append(value)
            elif tag in _TIFF_ASCII or tag == _USER_COMMENT or kind == 2:
                start = entry + 8 if size <= 4 else value
                _add(out, f"tag {tag:#06x}", _exif_string(tag, body[start : start + size], order))
    return out


def _exif_string(tag: int, raw: bytes, order: str) -> str:
    if tag == _USER_COMMENT:
        code, raw = raw[:8], raw[8:]
        if code == b"UNICODE\0":
            wide = "utf-16-le" if order == "<" else "utf-16-be"
            # Writers disagree about the byte order: a brace tells.
            if raw[:1] == b"{" or raw[1:2] == b"\0":
                wide = "utf-16-le"
            elif raw[:1] == b"\0":
                wide = "utf-16-be"
            return raw.decode(wide, "replace").rstrip("\0")
    return _decode(raw.rstrip(b"\0"))


def _add(out: dict[str, str], tag: str, text: str) -> None:
    name, colon, rest = text.partition(":")
    if colon and name.strip().lower() in ("prompt", "workflow"):
        out.setdefault(name.strip().lower(), rest)
    elif text:
        out.setdefault(tag, text)
