"""GGUF files for tests, written byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

from loraloom.weights.gguf_header import TYPES

NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def field(key: str, value: object) -> bytes:
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(str(v)) for v in value)
    return text(key) + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def write_gguf(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], **fields: object) -> Path:
    """tensors: name → type, shape in torch's order, data. In `fields`, "__" stands for a dot."""
    head, data = b"", b""
    for name, (kind, shape, stored) in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += text(name) + dimensions + struct.pack("<IQ", NUMBERS[kind], len(data))
        data += stored + bytes(-len(stored) % 32)
    said = b"".join(field(key.replace("__", "."), value) for key, value in fields.items())
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + said + head
    path.write_bytes(start + bytes(-len(start) % 32) + data)
    return path
