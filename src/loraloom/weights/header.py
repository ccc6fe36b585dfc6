"""The header of a safetensors or GGUF file, read and checked without torch.

Safetensors: 8 bytes little-endian length N, N bytes of JSON ({name: {dtype, shape, data_offsets}} and an
optional "__metadata__" of strings), then the data, without holes or overlaps
(https://github.com/huggingface/safetensors#format). A file comes from anywhere: nothing in it is believed
before it is checked, and files of other kinds are refused by what they are, unopened as far as possible.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import cast

from loraloom.errors import ModelFileError
from loraloom.file_identity import FileIdentity
from loraloom.weights.formats import TensorInfo
from loraloom.weights.gguf_header import read_gguf
from loraloom.weights.gguf_names import named_weights
from loraloom.weights.marks import weights_of
from loraloom.windows import extended

MAX_HEADER_BYTES = 25_000_000
MAX_TENSORS = 200_000
MAX_NAME = 1024
MAX_DIMENSIONS = 16

BITS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
        **dict.fromkeys(("F32", "I32", "U32"), 32),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
        **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
        **dict.fromkeys(("I8", "U8", "BOOL"), 8),
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        "F4": 4,
    }
)
"""Data type names of the format → bits per element."""


@dataclass(frozen=True, slots=True)
class Header:
    """All that a file says of itself before its data.

    tensors: its weights by name; those that are quantised are described by their values' shape and `packing`,
    and the scales and marks that belong to them are no tensors of their own."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    data_start: int
    file_size: int
    identity: FileIdentity


def open_regular(path: Path) -> int:
    """Descriptor of a regular file; a directory, FIFO or device is a ModelFileError, never a hang."""
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise ModelFileError(f"{path}: this is {what}; expected a .safetensors file")
        descriptor = os.open(extended(path), flags)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be opened: {error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelFileError(f"{path}: not a regular file; expected a .safetensors file")
    return descriptor


def pickle_advice(path: Path) -> str:
    """What to do with a pickle, for messages that refuse one."""
    return f"convert it with `loraloom models convert {shlex.quote(str(path))}`"


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check a file's header; ModelFileError says what the file is instead, or what is wrong."""
    where = Path(path)
    descriptor = open_regular(where)
    with os.fdopen(descriptor, "rb") as file:
        identity = FileIdentity.of_status(where, os.fstat(descriptor))
        start = file.read(512)
        _refuse_other_kinds(where, start, identity.size)
        if start.startswith(b"GGUF"):
            return _of_gguf(where, identity)
        if identity.size < 8:
            raise ModelFileError(f"{where}: cut short: {identity.size} bytes, less than any safetensors file")
        (length,) = struct.unpack("<Q", start[:8])
        if length > MAX_HEADER_BYTES:
            raise ModelFileError(
                f"{where}: not a safetensors file, or damaged: its header claims {length} bytes"
                f" (at most {MAX_HEADER_BYTES} are accepted)"
            )
        if 8 + length > identity.size:
            raise ModelFileError(
                f"{where}: cut short inside its header: {identity.size} of at least {8 + length} bytes;"
                " download it again"
            )
        file.seek(8)
        metadata, stored = _parse(where, file.read(length))
        _check_layout(where, stored, identity.size, 8 + length)

        def fetch(info: TensorInfo) -> bytes:
            file.seek(8 + length + info.begin)
            return file.read(info.end - info.begin)

        try:
            tensors = weights_of(stored, metadata, fetch)
        except ModelFileError as error:
            raise ModelFileError(f"{where}: {error}") from None
    return Header(
        where, MappingProxyType(metadata), MappingProxyType(tensors), 8 + length, identity.size, identity
    )


def _of_gguf(path: Path, identity: FileIdentity) -> Header:
    """A GGUF file's header in the same words; its metadata are those that are texts and numbers."""
    found = read_gguf(path)
    try:
        tensors = named_weights(found)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
    metadata = {key: str(value) for key, value in found.fields.items() if not isinstance(value, list)}
    return Header(
        path, MappingProxyType(metadata), MappingProxyType(tensors), found.data_start, identity.size, identity
    )


def _refuse_other_kinds(path: Path, start: bytes, size: int) -> None:
    """Name the kinds of file that are met in place of a safetensors file."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    convert = f"; such files can run code when opened and are never loaded: {pickle_advice(path)}"
    if size == 0:
        raise ModelFileError(f"{path}: the file is empty (0 bytes); download it again")
    if start.startswith(b"version https://git-lfs.github.com"):
        raise ModelFileError(
            f"{path}: a Git LFS pointer, not the model itself: run `git lfs pull`, or download the file"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ModelFileError(
            f"{path}: a web page, not a model: the download returned HTML (a login or error page?);"
            " download it again"
        )
    if start.startswith(b"PK\x03\x04"):
        raise ModelFileError(f"{path}: a zip archive (PyTorch .ckpt/.pt?){convert}")
    if len(start) > 1 and start[0] == 0x80 and start[1] <= 5 and start[8:9] != b"{":
        raise ModelFileError(f"{path}: a Python pickle (.ckpt/.pt/.bin){convert}")
    if start.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ")):
        raise ModelFileError(f"{path}: a compressed archive; unpack it and give the .safetensors file inside")
    if text.startswith((b"{", b"[")) and b"\x00" not in start:
        raise ModelFileError(f"{path}: a JSON text, not a model file; expected .safetensors")


class _DuplicateName(ValueError):
    pass


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _DuplicateName(f"the name {name!r} occurs twice")
    return found


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _parse(path: Path, text: bytes) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """JSON bytes → metadata and tensors, each entry checked by itself."""
    try:
        found: object = json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged header, or not a safetensors file: {error}") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: damaged header: a JSON object was expected")
    entries = cast(dict[str, object], found)
    metadata = _metadata(path, entries.pop("__metadata__", None))
    if len(entries) > MAX_TENSORS:
        raise ModelFileError(f"{path}: {len(entries)} tensors; at most {MAX_TENSORS} are accepted")
    return metadata, {name: _tensor(path, name, entry) for name, entry in entries.items()}


def _metadata(path: Path, found: object) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: damaged header: __metadata__ is not an object")
    metadata = cast(dict[str, object], found)
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise ModelFileError(f"{path}: damaged header: metadata {key[:80]!r} is not a text")
    return cast(dict[str, str], metadata)


def _is_safe(name: str) -> bool:
    """Whether a tensor name can be printed, encoded and used as a key without surprise."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and ".." not in name


def _tensor(path: Path, name: str, entry: object) -> TensorInfo:
    """One entry of the header → TensorInfo, or a ModelFileError."""
    if not _is_safe(name):
        raise ModelFileError(f"{path}: unsafe tensor name {name[:80]!r}: the file is refused")
    if not isinstance(entry, dict):
        raise ModelFileError(f"{path}: damaged header: tensor {name!r} is not described")
    fields = cast(dict[str, object], entry)
    dtype = fields.get("dtype")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ModelFileError(f"{path}: tensor {name!r} has the unknown data type {str(dtype)[:40]!r}")
    shape = _counts(path, name, "shape", fields.get("shape"))
    offsets = _counts(path, name, "data_offsets", fields.get("data_offsets"))
    if len(shape) > MAX_DIMENSIONS or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFileError(f"{path}: damaged header: shape {shape}, bytes {offsets} of tensor {name!r}")
    if prod(size or 1 for size in shape) >= 1 << 60:  # also beside a size of 0
        raise ModelFileError(f"{path}: damaged header: tensor {name!r} has the shape {list(shape)}")
    bits = prod(shape) * BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise ModelFileError(
            f"{path}: damaged header: tensor {name!r} ({dtype} {list(shape)}) needs {bits // 8} bytes"
            f" and claims {offsets[1] - offsets[0]}"
        )
    return TensorInfo(dtype, shape, offsets[0], offsets[1])


def _counts(path: Path, name: str, what: str, found: object) -> tuple[int, ...]:
    """A list of integers in [0, 2^63)."""
    if isinstance(found, list):
        values = cast(list[object], found)
        if all(type(value) is int and 0 <= value < 1 << 63 for value in values):
            return tuple(cast(list[int], values))
    raise ModelFileError(
        f"{path}: damaged header: {what} of tensor {name!r} is {repr(cast(object, found))[:80]}"
    )


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], size: int, data_start: int) -> None:
    """The data must be covered from its first to its last byte, once."""
    reached, last = 0, ""
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != reached:
            what = "overlaps" if info.begin < reached else "leaves a hole after"
            raise ModelFileError(f"{path}: damaged header: tensor {name!r} {what} {last!r} in the data")
        reached, last = info.end, name
    if data_start + reached > size:
        raise ModelFileError(
            f"{path}: cut short: {size} of {data_start + reached} bytes are there; download it again"
        )
    if data_start + reached < size:
        raise ModelFileError(
            f"{path}: {size - data_start - reached} bytes too many after the last tensor:"
            " damaged, or appended to"
        )
