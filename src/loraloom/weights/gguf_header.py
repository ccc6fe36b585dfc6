"""The header of a GGUF file, read and checked without torch or numpy.

Format: "GGUF", version, counts, key/value metadata, then per tensor a name, dimensions (the fastest first), a
type and a place in the data, which begins at the next multiple of the alignment
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Nothing in it is believed before it is checked.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, cast

from loraloom.errors import ModelFileError
from loraloom.weights.formats import Shape

MAX_TENSORS = 200_000
MAX_FIELDS = 100_000
MAX_NAME = 1024
MAX_TEXT = 1 << 26
MAX_ITEMS = 1 << 23
MAX_DIMENSIONS = 8
VERSIONS = (2, 3)

TYPES: Mapping[int, tuple[str, int, int]] = MappingProxyType(
    {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
        25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
        40: ("NVFP4", 64, 36),
    }
)  # fmt: skip
"""Number of a type → its name, values in a block, bytes of a block. Those whose values can be had."""

Value: TypeAlias = "str | int | float | bool | list[str] | list[int] | list[float] | list[bool]"

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True, slots=True)
class Block:
    """A tensor of the file: its type, shape in torch's order, and its bytes [begin, end) within the data."""

    type: str
    shape: Shape
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the file says before its data. fields: texts and numbers, and lists of them."""

    fields: Mapping[str, Value]
    blocks: Mapping[str, Block]
    data_start: int


def read_gguf(path: str | os.PathLike[str]) -> GgufHeader:
    """Read and check the header. ModelFileError says what is wrong."""
    where = Path(path)
    with _mapped(where) as data:
        cursor = _Cursor(where, data)
        version = cursor.number("I", 4)
        if version not in VERSIONS:
            raise ModelFileError(
                f"{where}: GGUF of version {version}; {' and '.join(map(str, VERSIONS))} are read"
            )
        tensors = cursor.count("tensors", MAX_TENSORS)
        count = cursor.count("metadata fields", MAX_FIELDS)
        fields: dict[str, Value] = {}
        for _ in range(count):
            key = cursor.text("the name of a metadata field")
            if key in fields:
                raise ModelFileError(f"{where}: damaged GGUF header: the field {key[:80]!r} occurs twice")
            fields[key] = cursor.value(cursor.number("I"))
        found = [_tensor(where, cursor) for _ in range(tensors)]
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise ModelFileError(f"{where}: damaged GGUF header: general.alignment is {alignment!r}")
        start = -(-cursor.place // alignment) * alignment
        blocks = _placed(where, found, len(data) - start, alignment)
    return GgufHeader(MappingProxyType(fields), MappingProxyType(blocks), start)


@contextmanager
def _mapped(path: Path) -> Generator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _tensor(path: Path, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, dimensions as in the file, number of the type, offset."""
    name = cursor.text("the name of a tensor", MAX_NAME)
    if not name.isprintable() or not name or ".." in name:
        raise ModelFileError(f"{path}: unsafe tensor name {name[:80]!r}: the file is refused")
    dimensions = cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise ModelFileError(f"{path}: damaged GGUF header: tensor {name!r} has {dimensions} dimensions")
    sizes = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, sizes, cursor.number("I"), cursor.number("Q")


def _placed(
    path: Path, found: list[tuple[str, tuple[int, ...], int, int]], available: int, alignment: int
) -> dict[str, Block]:
    """The tensors, their sizes and places checked: within the file, one after the other, none twice."""
    blocks: dict[str, Block] = {}
    reached, last = 0, ""
    for name, sizes, number, offset in sorted(found, key=lambda tensor: tensor[3]):
        if name in blocks:
            raise ModelFileError(f"{path}: damaged GGUF header: the tensor {name!r} occurs twice")
        if number not in TYPES:
            raise ModelFileError(
                f"{path}: the tensor {name!r} has the GGUF type {number}, which is not read here"
            )
        kind, values, width = TYPES[number]
        if not all(0 < size < 1 << 63 for size in sizes):
            raise ModelFileError(
                f"{path}: damaged GGUF header: the tensor {name!r} has the shape {list(sizes[::-1])}"
            )
        row = sizes[0] if sizes else 1
        if row % values:
            raise ModelFileError(
                f"{path}: damaged GGUF header: rows of {row} values of the tensor {name!r} are no whole"
                f" blocks of {kind} ({values} values)"
            )
        size = prod(sizes) // values * width
        if offset % alignment or offset < reached:
            raise ModelFileError(
                f"{path}: damaged GGUF header: the tensor {name!r} begins within {last!r} or at no multiple"
                f" of {alignment}"
            )
        if offset + size > available:
            raise ModelFileError(
                f"{path}: cut short: the tensor {name!r} ends {offset + size - available} bytes behind the"
                " file's end; download it again"
            )
        blocks[name] = Block(kind, sizes[::-1], offset, offset + size)
        reached, last = offset + size, name
    return blocks


class _Cursor:
    """A place in a GGUF header, from which things are read one after the other."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self.place = path, data, 0
        self._items = 0  # of all lists: each takes several times its bytes in memory

    def number(self, code: str, skip: int = 0) -> int:
        return cast(int, self._scalar(code, skip))

    def count(self, what: str, limit: int) -> int:
        found = self.number("Q")
        if found > limit:
            raise ModelFileError(
                f"{self._path}: damaged GGUF header: it claims {found} {what} (at most {limit} are accepted)"
            )
        return found

    def text(self, what: str = "a text", limit: int = MAX_TEXT) -> str:
        size = self.number("Q")
        if size > limit:
            raise ModelFileError(f"{self._path}: damaged GGUF header: {what} claims {size} bytes")
        self._need(size)
        begin, self.place = self.place, self.place + size
        return self._data[begin : self.place].decode("utf-8", "replace")

    def value(self, kind: int, *, inner: bool = False) -> Value:
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _LIST or inner:
            raise ModelFileError(f"{self._path}: damaged GGUF header: a value of the unknown type {kind}")
        kind, count = self.number("I"), self.count("values of a metadata field", MAX_ITEMS)
        self._items += count
        if self._items > MAX_ITEMS:
            raise ModelFileError(
                f"{self._path}: damaged GGUF header: its metadata lists hold more than {MAX_ITEMS} values"
            )
        if kind in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[kind])
            self._need(count * size)
            begin, self.place = self.place, self.place + count * size
            return list(struct.unpack(f"<{count}{_SCALARS[kind]}", self._data[begin : self.place]))
        self._need(count * 8)  # every text has at least its length
        return cast("list[str]", [self.value(kind, inner=True) for _ in range(count)])

    def _scalar(self, code: str, skip: int = 0) -> int | float | bool:
        self.place += skip
        size = struct.calcsize("<" + code)
        self._need(size)
        (found,) = struct.unpack_from("<" + code, self._data, self.place)
        self.place += size
        return found

    def _need(self, size: int) -> None:
        if self.place + size > len(self._data):
            raise ModelFileError(
                f"{self._path}: cut short inside its GGUF header: {len(self._data)} bytes, and"
                f" {self.place + size} are needed; download it again"
            )
