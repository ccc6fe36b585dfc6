"""What server and worker say to each other: JSON with an optional binary tail, length first.

A frame is two big-endian u32 (bytes of JSON, bytes of tail), the JSON object, the tail.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import IO, TypeAlias, cast

from loraloom.errors import LoraloomError
from loraloom.workflow.graph import JSON
from loraloom.workflow.json_text import write_json

Frame: TypeAlias = "tuple[dict[str, JSON], bytes]"

_LENGTHS = struct.Struct(">II")
MAX_BYTES = 256 * 1024 * 1024


class BrokenFrame(LoraloomError):
    """The other side sent something that is no frame."""


def encode(message: Mapping[str, JSON], tail: bytes = b"") -> bytes:
    text = write_json(message).encode()
    return _LENGTHS.pack(len(text), len(tail)) + text + tail


def read(file: IO[bytes]) -> Frame | None:
    """The next frame; None at the end."""
    lengths = file.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    text_bytes, tail_bytes = _checked(lengths)
    body = file.read(text_bytes + tail_bytes)
    return None if len(body) < text_bytes + tail_bytes else _parse(body, text_bytes)


async def receive(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None at the end."""
    try:
        text_bytes, tail_bytes = _checked(await reader.readexactly(_LENGTHS.size))
        return _parse(await reader.readexactly(text_bytes + tail_bytes), text_bytes)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _checked(lengths: bytes) -> tuple[int, int]:
    text_bytes, tail_bytes = _LENGTHS.unpack(lengths)
    if text_bytes + tail_bytes > MAX_BYTES:
        raise BrokenFrame(f"a frame of {text_bytes + tail_bytes} bytes, expected at most {MAX_BYTES}")
    return text_bytes, tail_bytes


def _parse(body: bytes, text_bytes: int) -> Frame:
    message = json.loads(body[:text_bytes], parse_constant=lambda _: None)
    if not isinstance(message, dict):
        raise BrokenFrame(f"a frame holds {type(message).__name__}, expected an object")
    return cast("dict[str, JSON]", message), body[text_bytes:]
