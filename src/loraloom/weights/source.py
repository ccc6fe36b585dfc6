"""The weights of one network under their native names, wherever the files keep them.

Native names are those of the family's original checkpoint, without the file's prefix. A source hides the
prefix, renames, several files, layers fused in one file and split in another. It is immutable, compares by
content identity, and reads nothing until asked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.weights.dtypes import DTYPES
from loraloom.weights.formats import Format, TensorInfo, formats
from loraloom.weights.packed import Packed, joined
from loraloom.weights.patch import Rows
from loraloom.weights.tensor_file import TensorFile

T = TypeVar("T")
Shapes: TypeAlias = "Mapping[str, tuple[int, ...]]"


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a file, or some of its rows, possibly transposed (before the rows are taken)."""

    file: TensorFile
    key: str
    rows: Rows = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.info.shape
        shape = shape[::-1] if self.transposed else shape
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])

    @property
    def info(self) -> TensorInfo:
        return self.file.header.tensors[self.key]

    @property
    def nbytes(self) -> int:
        """Its share of the tensor's bytes."""
        if self.rows is None:
            return self.info.nbytes
        return (
            self.info.nbytes
            * (self.rows[1] - self.rows[0])
            // max(1, self.info.shape[-1 if self.transposed else 0])
        )

    @property
    def is_whole(self) -> bool:
        return self.rows is None and not self.transposed

    def packed(self, *, mapped: bool = False) -> Packed:
        """The piece as it is stored; not for transposed ones."""
        whole = self.file.packed(self.key, mapped=mapped)
        return whole.rows(() if self.rows is None else (self.rows,))

    def cut(self, tensor: Tensor) -> Tensor:
        """The piece, from the whole tensor of the file."""
        tensor = tensor.T if self.transposed else tensor
        return tensor if self.rows is None else tensor[self.rows[0] : self.rows[1]]


Entry: TypeAlias = "tuple[Piece, ...]"
"""What makes up one native weight: pieces, concatenated along dimension 0."""

Rename: TypeAlias = Callable[[str], str | None]
"""Key without prefix → native name, or None when the key belongs to something else."""


class WeightSource:
    """Native names over the tensors of one or several files."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)
        self.shapes: Shapes = MappingProxyType(
            {name: _joined_shape(entry) for name, entry in self._entries.items()}
        )
        self.dtypes: Mapping[str, torch.dtype] = MappingProxyType(
            {name: _dtype(name, entry) for name, entry in self._entries.items()}
        )
        self.identity: Hashable = frozenset(
            (name, tuple((p.file.identity, p.key, p.rows, p.transposed) for p in entry))
            for name, entry in entries.items()
        )
        self._hash = hash(self.identity)
        self._worked_out: dict[Callable[[Shapes], object], object] = {}

    @classmethod
    def of_file(cls, file: TensorFile, prefix: str = "", rename: Rename | None = None) -> WeightSource:
        """The tensors of a file that begin with `prefix`, renamed to native names."""
        entries: dict[str, Entry] = {}
        for key in file.header.tensors:
            if key.startswith(prefix):
                bare = key[len(prefix) :]
                native = bare if rename is None else rename(bare)
                if native is not None:
                    entries[native] = (Piece(file, key),)
        return cls(entries)

    @classmethod
    def joined(cls, sources: Iterable[WeightSource]) -> WeightSource:
        """Several sources as one; a name that two of them hold is taken from the last."""
        entries: dict[str, Entry] = {}
        for source in sources:
            entries.update(source._entries)
        return cls(entries)

    def worked_out(self, by: Callable[[Shapes], T]) -> T:
        """What a function makes of the shapes, which it is asked once. by: a function that stays."""
        if by not in self._worked_out:
            self._worked_out[by] = by(self.shapes)
        return cast(T, self._worked_out[by])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightSource) and self.identity == other.identity

    def __hash__(self) -> int:
        return self._hash

    def __contains__(self, native: str) -> bool:
        return native in self._entries

    @property
    def files(self) -> tuple[TensorFile, ...]:
        """The files behind the source, each once, in order of first use."""
        return tuple(dict.fromkeys(piece.file for entry in self._entries.values() for piece in entry))

    @contextmanager
    def naming(self) -> Generator[None, None, None]:
        """Put the files' names before what is found to be wrong with them."""
        try:
            yield
        except ModelFileError as error:
            names = ", ".join(str(file.path) for file in self.files)
            raise ModelFileError(f"{names}: {error}") from error

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header metadata of all files, the first file's entries first."""
        found: dict[str, str] = {}
        for file in self.files:
            for key, value in file.header.metadata.items():
                found.setdefault(key, value)
        return MappingProxyType(found)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(self.stored_bytes(name) for name in self._entries)

    def stored_bytes(self, native: str) -> int:
        """Bytes of one weight in its files, scales included."""
        return sum(piece.nbytes for piece in self._entry(native))

    def is_packed(self, native: str) -> bool:
        """Whether the file has the weight quantised, or in a type that nothing is computed in."""
        return any(piece.info.packing is not None for piece in self._entry(native))

    def format(self, native: str) -> str | None:
        """The storage format of a quantised weight, in ComfyUI's or GGUF's words."""
        packing = self._entry(native)[0].info.packing
        return (
            None
            if packing is None
            else str(packing.settings.get("format", self._entry(native)[0].info.dtype))
        )

    def packing(self, native: str) -> Format | None:
        """How a quantised weight is packed."""
        packing = self._entry(native)[0].info.packing
        return None if packing is None else formats()[packing.format]

    def stays_packed(self, native: str) -> bool:
        """Whether `packed` has a quantised weight as it is stored."""
        entry = self._entry(native)
        kinds = [_storage_of(piece) for piece in entry]
        if None in kinds or any(kind != kinds[0] for kind in kinds):
            return False
        packing = entry[0].info.packing
        has_shared_parts = packing is not None and bool(
            formats()[packing.format].shared & packing.parts.keys()
        )
        return len(entry) == 1 or not has_shared_parts or self.packed(native, mapped=True) is not None

    def packed(self, native: str, *, mapped: bool = False) -> Packed | None:
        """A quantised weight as it is stored; None where it cannot stay so (pieces of different formats, a
        transposed piece): then it is to be `read`."""
        entry = self._entry(native)
        if any(piece.transposed or piece.info.packing is None for piece in entry):
            return None
        return joined([piece.packed(mapped=mapped) for piece in entry])

    def quantised(self, native: str) -> Packed | None:
        """As `packed`, on the file's own pages where that is possible; None for weights that are not."""
        return self.packed(native, mapped=True)

    def stored(self, native: str) -> Tensor:
        """The values as the file has them; of a quantised weight, without its scales."""
        pieces = [
            piece.file.read(piece.key) if piece.info.packing is None else piece.packed().stored
            for piece in self._entry(native)
        ]
        return (
            pieces[0]
            if len(pieces) == 1
            else torch.cat([piece.view(torch.uint8).flatten() for piece in pieces])
        )

    def read(self, native: str, dtype: torch.dtype | None = None) -> Tensor:
        """The values in fresh memory; quantised ones are widened (to float32 unless asked)."""
        return _read_entry(self._entry(native), dtype)

    def read_into(self, native: str, out: Tensor) -> None:
        """As `read`, into memory that is there; see `TensorFile.read_into`."""
        entry = self._entry(native)
        if len(entry) == 1 and entry[0].is_whole:
            entry[0].file.read_into(entry[0].key, out)
        else:
            out.copy_(self.read(native).view_as(out))

    def map(self, native: str) -> Tensor:
        """The values, without a copy where the file has them in one piece and as they are, else as `read`."""
        entry = self._entry(native)
        if len(entry) == 1 and entry[0].info.is_readable:
            return entry[0].cut(entry[0].file.map(entry[0].key))
        return self.read(native)

    def _entry(self, native: str) -> Entry:
        entry = self._entries.get(native)
        if entry is None:
            names = ", ".join(str(file.path) for file in self.files)
            raise ModelFileError(f"the weight {native!r} is missing in {names}")
        return entry


def _storage_of(piece: Piece) -> tuple[object, ...] | None:
    """What pieces of one weight must have in common to stay quantised; None for one that cannot."""
    info = piece.info
    if info.packing is None or piece.transposed:
        return None
    return info.packing.format, info.packing.settings, set(info.packing.parts), info.dtype, info.shape[1:]


def _joined_shape(entry: Entry) -> tuple[int, ...]:
    shapes = [piece.shape for piece in entry]
    if len(shapes) == 1:
        return shapes[0]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _dtype(name: str, entry: Entry) -> torch.dtype:
    piece = entry[0]
    kind = piece.info.dtype
    found = DTYPES.get(kind) if piece.info.is_readable else torch.float32
    if found is None:
        raise ModelFileError(f"{piece.file.path}: tensor {name!r} has type {kind}, which cannot be read")
    return found


def _read_entry(entry: Entry, dtype: torch.dtype | None) -> Tensor:
    """Fresh, contiguous memory with all pieces, converted piece by piece."""
    if len(entry) == 1 and entry[0].is_whole:
        return entry[0].file.read(entry[0].key, dtype)
    parts = [piece.cut(piece.file.read(piece.key)) for piece in entry]
    if dtype is not None:
        parts = [part.to(dtype) for part in parts]
    elif len({part.dtype for part in parts}) > 1:
        parts = [part.float() for part in parts]
    return parts[0].contiguous().clone() if len(parts) == 1 else torch.cat(parts)
