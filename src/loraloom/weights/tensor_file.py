"""Tensors of a safetensors file, one at a time: read into fresh memory, or mapped without a copy.

`read` uses positioned reads, so that nothing stays mapped and the process holds only what it asked for.
`map` shares the page cache: right where the stored type is the one to compute in.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.file_identity import FileIdentity
from loraloom.weights.dtypes import DTYPES
from loraloom.weights.formats import TensorInfo
from loraloom.weights.header import Header, open_regular, read_header
from loraloom.weights.packed import Packed

_PART_DTYPES = MappingProxyType({**DTYPES, "F8_E8M0": torch.uint8})
"""As `DTYPES`, for what packed weights are made of: bits that their format knows how to read."""

_READ_AT_ONCE = 1 << 26

_PIECE = 1 << 19
"""Elements that are converted at once: with both types, about a processor's second-level cache."""


class TensorFile:
    """A safetensors file opened for reading.

    The file stays open, so that its weights can be read again for as long as the object lives, even if
    another file takes its place under the same name. A file changed in place is an error at the next read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.header: Header = read_header(path)
        self._descriptor = open_regular(self.header.path)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._mapping: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._check_unchanged()

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def identity(self) -> FileIdentity:
        return self.header.identity

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in fresh memory, converted to `dtype` if given; nothing of the file stays mapped.
        Quantised weights are widened, to float32 unless asked."""
        info = self._info(key)
        if not info.is_readable:
            return self.packed(key).widened(dtype or torch.float32)
        tensor = self._read(info, self._dtype(key, info))
        return tensor if dtype is None else tensor.to(dtype)

    def read_into(self, key: str, out: Tensor) -> None:
        """Fill `out` (on the CPU) with the values, converted to its type: contiguous and of as many elements,
        or of the tensor's shape and in any order.

        Types and orders are converted in pieces that stay in the processor's cache: one pass over the file's
        pages and one over `out`."""
        info = self._info(key)
        out = out.detach()
        if not info.is_readable:
            out.copy_(self.packed(key).widened(torch.float32).view_as(out))
            return
        dtype, start = self._dtype(key, info), self.header.data_start + info.begin
        self._check_unchanged()
        is_plain = out.is_contiguous()
        if is_plain and out.dtype == dtype:
            self._fill(_bytes_of(out.view(-1)), start)
            return
        rows = out.view(-1) if is_plain else out
        wide = rows[0].numel() if len(rows) else 1
        at_once = max(1, _PIECE // max(1, wide))
        piece = torch.empty((min(len(rows), at_once), *rows.shape[1:]), dtype=dtype)
        for first in range(0, len(rows), at_once):
            part = piece[: len(rows) - first]
            self._fill(_bytes_of(part.view(-1)), start + first * wide * dtype.itemsize)
            rows[first : first + len(part)].copy_(part)

    def map(self, key: str) -> Tensor:
        """The tensor without a copy, on pages shared with the file; a write changes only this process.
        Quantised weights are read."""
        info = self._info(key)
        return self._map(info, self._dtype(key, info)) if info.is_readable else self.read(key)

    def unmap(self) -> None:
        """Let go of the pages that nobody uses; tensors that are mapped keep theirs."""
        with self._lock:
            self._mapping = None

    def packed(self, key: str, *, mapped: bool = False) -> Packed:
        """A quantised weight as it is stored. mapped: on pages shared with the file, where that is possible.
        ModelFileError where scales are no numbers."""
        info = self._info(key)
        if info.packing is None:
            raise ModelFileError(f"{self.path}: the tensor {key!r} is not quantised")
        get = self._map if mapped else self._read
        parts = {
            role: get(part, self._dtype(f"{key} ({role})", part, _PART_DTYPES))
            for role, part in info.packing.parts.items()
        }
        try:
            return Packed.of(info.packing.format, parts, info.packing.settings, info.shape)
        except ModelFileError as error:
            format = info.packing.settings.get("format", info.packing.format)
            raise ModelFileError(
                f"{self.path}: the weight {key!r} is damaged: {error} (stored as {format})"
            ) from None

    def _read(self, info: TensorInfo, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(info.shape, dtype=dtype)
        self._check_unchanged()
        self._fill(_bytes_of(tensor.view(-1)), self.header.data_start + info.begin)
        return tensor

    def _map(self, info: TensorInfo, dtype: torch.dtype) -> Tensor:
        offset, size = self.header.data_start + info.begin, info.end - info.begin
        if offset % dtype.itemsize or not size or sys.platform == "win32":
            return self._read(info, dtype)
        self._check_unchanged()
        with self._lock:
            if self._mapping is None:
                self._mapping = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_COPY)
            mapping = self._mapping  # another thread may let go of it from here on
        count = size // dtype.itemsize
        return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).reshape(info.shape)

    def _info(self, key: str) -> TensorInfo:
        info = self.header.tensors.get(key)
        if info is None:
            raise ModelFileError(f"{self.path}: holds no tensor {key!r}")
        return info

    def _dtype(self, key: str, info: TensorInfo, known: Mapping[str, torch.dtype] = DTYPES) -> torch.dtype:
        dtype = known.get(info.dtype)
        if dtype is None:
            raise ModelFileError(
                f"{self.path}: tensor {key!r} is stored as {info.dtype}, which cannot be read"
            )
        return dtype

    def _fill(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            count = _read_at(self._descriptor, view[done : done + _READ_AT_ONCE], offset + done)
            if not count:
                raise ModelFileError(f"{self.path}: cut short while it was read; download it again")
            done += count

    def _check_unchanged(self) -> None:
        now = FileIdentity.of_status(self.path, os.fstat(self._descriptor))
        if now.content != self.identity.content:
            raise ModelFileError(f"{self.path}: the file was changed while in use; run again")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a flat tensor."""
    return memoryview(tensor.view(torch.uint8).numpy().data)


def _read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill `view` from `offset`; the number of bytes read. Several threads may read one descriptor."""
    if sys.platform == "win32":
        return _seek_and_read(descriptor, view, offset)
    return os.preadv(descriptor, [view], offset)


def _seek_and_read(descriptor: int, view: memoryview, offset: int) -> int:
    """`preadv` where there is none: the descriptor's position is one for all threads."""
    with _ONE_POSITION, open(descriptor, "rb", buffering=0, closefd=False) as file:
        file.seek(offset)
        return file.readinto(view) or 0


_ONE_POSITION = threading.Lock()
