"""What a storage format is, and the registry of those that are known: one per file of `weights/storage`.

A format says how a quantised weight stands in a file (from names, types and shapes alone, without torch) and
how its values are had again. Importing formats never imports torch; what computes with tensors does.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from loraloom.errors import ModelFileError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape: TypeAlias = "tuple[int, ...]"

Parts: TypeAlias = "Mapping[str, Tensor]"
"""Role ("weight", "scale", …) → tensor. All but those of a format's `shared` have one entry per row."""

Settings: TypeAlias = "Mapping[str, Any]"
"""What a file says about one layer beside its tensors."""

FP8 = MappingProxyType({"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"})
"""Types of 8-bit floats as safetensors names them → as ComfyUI does."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as it stands in a file: type as the file names it, shape, its bytes [begin, end) within the
    data. packing: how its values are packed; None: as they are.

    Of a packed weight, `shape` is that of the values."""

    dtype: str
    shape: Shape
    begin: int
    end: int
    packing: Packing | None = None

    @property
    def is_readable(self) -> bool:
        """Whether the tensor itself has the values: it is not packed, or a plain cast to 8-bit floats."""
        return self.packing is None or (self.dtype in FP8 and len(self.packing.parts) == 1)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, those of scales and the like included."""
        if self.packing is None:
            return self.end - self.begin
        return sum(part.end - part.begin for part in self.packing.parts.values())


@dataclass(frozen=True, slots=True)
class Packing:
    """How one weight is packed. parts: role → the file's tensor."""

    format: str
    parts: Mapping[str, TensorInfo]
    settings: Settings = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that a format is to describe. tensors: the file's, by what stands behind "NAME." in their names
    ("weight", "weight_scale", …). said: what the mark says."""

    name: str
    tensors: Mapping[str, TensorInfo]
    said: Settings

    def part(self, *names: str) -> TensorInfo | None:
        """The first of these tensors that the layer has."""
        return next((self.tensors[name] for name in names if name in self.tensors), None)

    def need(self, dtypes: Iterable[str], *names: str) -> TensorInfo:
        """One of these tensors, of one of these types; ModelFileError where there is none."""
        found, wanted = self.part(*names), tuple(dtypes)
        if found is None:
            raise ModelFileError(f"its {names[0]} is missing")
        if found.dtype not in wanted:
            raise ModelFileError(f"its {names[0]} is stored as {found.dtype}, not {' or '.join(wanted)}")
        return found

    def matrix(self, dtypes: Iterable[str]) -> TensorInfo:
        """The weight, which must be a matrix."""
        weight = self.need(dtypes, "weight")
        if len(weight.shape) != 2:
            raise ModelFileError(f"its weight has shape {list(weight.shape)}, which is no matrix")
        return weight

    def count(self, name: str, default: int) -> int:
        """A positive number that the mark gives."""
        value = self.said.get(name, default)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ModelFileError(f"its {name} is {value!r}; a positive number was expected")
        return value

    def flag(self, name: str) -> bool:
        """Whether the mark says so; false where it is silent."""
        value = self.said.get(name, False)
        if type(value) is not bool:
            raise ModelFileError(f"its {name} is {str(value)[:60]!r}; true or false was expected")
        return value


SCALES = ("F32", "F16", "BF16")
"""Types that scales come in."""


def row_scale(layer: Layer, rows: int, *names: str) -> TensorInfo:
    """A scale for the whole weight, or one for each row: () or (1,) or (rows,) or (rows, 1)."""
    scale = layer.need(SCALES, *names)
    if prod(scale.shape) not in (1, rows) or scale.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
        raise ModelFileError(
            f"its {names[0]} has shape {list(scale.shape)}; one number, or one for each of its {rows} rows,"
            " was expected"
        )
    return scale


def must_have_shape(info: TensorInfo, shape: Shape, what: str) -> None:
    if info.shape != shape:
        raise ModelFileError(f"its {what} has shape {list(info.shape)}; {list(shape)} was expected")


class Format:
    """A storage format; its file ends in FORMAT, an instance.

    name: one word. title: for messages. said: what ComfyUI calls it. shared: roles of which there is one for
    all rows. rounds_inputs: whether `product` rounds what it multiplies (as ComfyUI does for this format).
    passing: bytes for each value that widening takes beside the result, whatever its type.
    """

    name: str = ""
    title: str = ""
    said: tuple[str, ...] = ()
    shared: frozenset[str] = frozenset()
    rounds_inputs: bool = False
    passing: int = 8

    def refuses(self, names: Mapping[str, TensorInfo]) -> str | None:
        """For formats that cannot be read: why, and what to take instead, where a file is of this format."""
        del names
        return None

    def describe(self, layer: Layer) -> tuple[Shape, Packing]:
        """The shape of the values, and how they are packed. ModelFileError says what is wrong."""
        raise NotImplementedError

    def prepared(self, parts: dict[str, Tensor], shape: Shape, settings: Settings) -> dict[str, Tensor]:
        """The parts as they are kept in memory: (rows, …), scales of all rows without dimensions."""
        del settings
        return {role: by_row(part, shape[0]) for role, part in parts.items()}

    def widened(self, parts: Parts, settings: Settings, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The values (rows, …), in a type to compute in."""
        raise NotImplementedError

    def product(self, parts: Parts, settings: Settings, shape: Shape, x: Tensor) -> Tensor:
        """x (…, in) → (…, rows), without a bias, as ComfyUI computes it for this format."""
        from torch.nn import functional

        return functional.linear(x, self.widened(parts, settings, shape, x.dtype))

    def pack(self, weight: Tensor, option: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A weight (rows, in), float32, in this format: tensors by what stands behind "NAME.", and what the
        mark says. None where a weight of this shape cannot be stored so. option: what a user wrote behind
        the format's name."""
        raise ModelFileError(f"{self.title} is read here, but not written")

    def rounded(self, values: Tensor, parts: Parts, settings: Settings) -> Tensor | None:
        """Other values (n, in), float32, as they would be after being stored as this weight is; None where
        that is not known."""
        from loraloom.weights.packed import packed_as

        del parts
        if type(self).pack is Format.pack:
            return None
        found = packed_as(self, values, self.option(settings))
        return None if found is None else found.widened(values.dtype)

    def option(self, settings: Settings) -> str:
        """What `pack` needs to be told in order to store a weight as one with these settings is."""
        del settings
        return ""


def by_row(part: Tensor, rows: int) -> Tensor:
    """A scale as () or (rows, 1); everything else as it is."""
    if part.numel() == 1:
        return part.reshape(())
    return part.reshape(rows, 1) if part.dim() == 1 and part.numel() == rows else part


@lru_cache(maxsize=1)
def formats() -> Mapping[str, Format]:
    """Name → format: all that there are."""
    import loraloom.weights.storage as folder

    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    return register(importlib.import_module(f"{folder.__name__}.{name}").FORMAT for name in names)


def register(found: Iterable[Format]) -> Mapping[str, Format]:
    """Formats by name; two that answer to one name are an error."""
    known: dict[str, Format] = {}
    owners: dict[str, Format] = {}
    for one in found:
        for name in (one.name, *one.said):
            if name in owners and owners[name] is not one:
                raise ValueError(
                    f"two storage formats are called {name!r}: {owners[name].title}, {one.title}"
                )
            owners[name] = one
        if one.name in known:
            raise ValueError(f"two storage formats are called {one.name!r}")
        known[one.name] = one
    return MappingProxyType(known)


@lru_cache(maxsize=1)
def formats_said() -> Mapping[str, Format]:
    """What a mark may say → the format."""
    return MappingProxyType({said: one for one in formats().values() for said in one.said})


Fetch: TypeAlias = Callable[[TensorInfo], bytes]
"""The bytes of a small tensor of the file."""
