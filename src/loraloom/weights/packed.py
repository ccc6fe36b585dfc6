"""A quantised weight in memory: as its file stores it, with its values to be had when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import ModelFileError
from loraloom.weights.dtypes import DTYPE_NAMES
from loraloom.weights.formats import Format, Layer, Parts, Settings, Shape, TensorInfo, formats


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight of `shape` (rows, …) in a storage format. parts: as `Format.prepared` leaves them."""

    format: Format
    parts: Parts
    settings: Settings
    shape: Shape

    @classmethod
    def of(cls, format: str, parts: dict[str, Tensor], settings: Settings, shape: Shape) -> Packed:
        """From a file's tensors. ModelFileError where they hold values that make no weight."""
        known = formats()[format]
        for role, part in parts.items():
            if role != "weight" and part.is_floating_point() and not bool(part.float().isfinite().all()):
                raise ModelFileError("its scales hold values that are no numbers")
        return cls(known, known.prepared(parts, shape, settings), settings, shape)

    @property
    def stored(self) -> Tensor:
        """The part that holds the values."""
        return self.parts["weight"] if "weight" in self.parts else self.parts["folded"]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def device(self) -> torch.device:
        return self.stored.device

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The values, in a type to compute in."""
        return self.format.widened(self.parts, self.settings, self.shape, dtype).reshape(self.shape)

    def reshaped(self, shape: Shape) -> Packed:
        """The same rows in another shape."""
        parts = {
            role: part.reshape(shape) if role == "weight" and part.numel() == prod(shape) else part
            for role, part in self.parts.items()
        }
        return self if shape == self.shape else replace(self, parts=parts, shape=shape)

    def product(self, x: Tensor, *, native: bool) -> Tensor:
        """x (…, in) · Wᵀ. native: as ComfyUI computes it for the format, else with the values themselves.
        Gradients reach x."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self, native)  # pyright: ignore[reportReturnType]
        return self._product(x, native)

    def _product(self, x: Tensor, native: bool) -> Tensor:
        if native or not self.format.rounds_inputs:
            return self.format.product(self.parts, self.settings, self.shape, x)
        return F.linear(x, self.widened(x.dtype))

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Packed:
        """Row ranges one after the other (none: all rows): views where there is one range."""
        if not ranges:
            return self
        if "folded" in self.parts:
            values = self.widened(torch.float32)
            return narrowed(torch.cat([values[begin:end] for begin, end in ranges]))
        return self._each(
            lambda part: (
                part[ranges[0][0] : ranges[0][1]]
                if len(ranges) == 1
                else torch.cat([part[begin:end] for begin, end in ranges])
            ),
            sum(end - begin for begin, end in ranges),
        )

    def take(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The values of some rows: (*index.shape, …)."""
        if "folded" in self.parts:
            return self.widened(dtype)[index]
        chosen, back = index.reshape(-1).unique(return_inverse=True)
        values = self._each(lambda part: part[chosen], len(chosen)).widened(dtype)
        return values[back].reshape(*index.shape, *self.shape[1:])

    def rounded(self, values: Tensor) -> Tensor | None:
        """Other values for some rows (n, in), float32, as they would be after being stored as this weight is;
        None where that is not known."""
        return self.format.rounded(values, self.parts, self.settings)

    def to(self, device: torch.device) -> Packed:
        """Pinned parts cross while the host goes on."""
        moved = {
            role: part.to(device, non_blocking=part.is_pinned() if part.is_cpu else False)
            for role, part in self.parts.items()
        }
        return replace(self, parts=moved)

    def pinned(self) -> Packed:
        """In the host's memory where a device can fetch it by itself."""
        return replace(self, parts={role: part.pin_memory() for role, part in self.parts.items()})

    def multiplied(self) -> Packed:
        """Multiplied in 8 bits, where the format does that and the shape allows it."""
        if self.format.name != "fp8":
            return self
        return replace(self, settings={**self.settings, "multiplied": True})

    def wide(self, dtype: torch.dtype, *, native: bool) -> Packed | None:
        """The same weight with its values in a type to compute in: the same products in it, bit for bit,
        without widening anything. None where it is multiplied otherwise than with its values."""
        if (native and self.format.rounds_inputs) or "multiplied" in self.settings:
            return None
        if self.format.name == "fp8" and dtype != torch.float16:  # the scale stays with the product
            return replace(self, parts={**self.parts, "weight": self.parts["weight"].to(dtype)})
        return narrowed(self.widened(dtype))

    def _each(self, change: Any, rows: int) -> Packed:
        parts = {
            role: part if role in self.format.shared or not part.dim() else change(part)
            for role, part in self.parts.items()
        }
        return replace(self, parts=parts, shape=(rows, *self.shape[1:]))


def joined(packed: Sequence[Packed]) -> Packed | None:
    """Several weights, one below the other, as one; None where their storage does not allow it."""
    first = packed[0]
    if len(packed) == 1:
        return first
    alike = all(
        one.format is first.format
        and one.settings == first.settings
        and one.parts.keys() == first.parts.keys()
        and one.shape[1:] == first.shape[1:]
        and one.stored.dtype == first.stored.dtype
        and "folded" not in one.parts
        for one in packed
    )
    shared = first.format.shared & first.parts.keys()
    if not alike or any(
        not torch.equal(one.parts[role], first.parts[role]) for one in packed for role in shared
    ):
        return None
    parts = {
        role: part if role in shared else torch.cat([_for_rows(one, role) for one in packed])
        for role, part in first.parts.items()
    }
    return replace(first, parts=parts, shape=(sum(one.shape[0] for one in packed), *first.shape[1:]))


def _for_rows(packed: Packed, role: str) -> Tensor:
    """A part with an entry for each row."""
    part = packed.parts[role]
    return part if part.dim() else part.expand(packed.shape[0], 1)


def packed_as(format: Format, values: Tensor, option: str = "") -> Packed | None:
    """Values (rows, in), float32, in a storage format; None where they cannot be stored so. option: see
    `Format.pack`."""
    made = format.pack(values, option)
    if made is None:
        return None
    tensors, said = made
    infos = {
        name: TensorInfo(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in tensors.items()
    }
    shape, packing = format.describe(Layer("", infos, said))
    names = {id(info): name for name, info in infos.items()}
    parts = {role: tensors[names[id(info)]] for role, info in packing.parts.items()}
    return Packed.of(format.name, parts, said, shape)


def narrowed(values: Tensor) -> Packed:
    """Floats of a type that nothing is computed in, without a scale."""
    return Packed.of("fp8", {"weight": values}, {}, tuple(values.shape))


class _Product(torch.autograd.Function):
    """A product whose gradient widens the weight again, instead of keeping its values from pass to pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed, native: bool) -> Tensor:
        ctx.packed = packed
        return packed._product(x, native)  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.packed.widened(gradient.dtype), None, None
