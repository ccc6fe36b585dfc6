"""Layers around quantised weights: the values are had when they are used, LoRAs run beside them.

y = W x + bias + up (down x). Each can also carry a weight with a change merged into it, in the type to
compute in, when the change is of a kind that cannot run beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.weights.packed import Packed
from loraloom.weights.picture_layers import PictureConv

LowRank: TypeAlias = "tuple[Tensor, Tensor]"
"""down (R, in) and up (out, R)."""


class PackedLayer(nn.Module):
    """What the layers have in common.

    packed: the weight as stored; None while `merged` takes its place. wide: the same with its values widened,
    while there is memory for both. dtype: what `weight` is widened to.
    native: multiply as ComfyUI does for the format, else with the values themselves."""

    bias: Tensor | None

    def __init__(self, like: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, native: bool) -> None:
        nn.Module.__init__(self)
        for name, value in vars(like).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        self.bias = getattr(like, "bias", None)
        self.shape, self.dtype, self.native = shape, dtype, native
        self.packed: Packed | None = None
        self.wide: Packed | None = None
        self.merged: Tensor | None = None
        self.low_rank: LowRank | None = None

    @property
    def weight(self) -> Tensor:
        """The values, widened anew at each call unless they are merged or kept wide."""
        if self.merged is not None:
            return self.merged
        packed = self.packed if self.wide is None else self.wide
        if packed is None:
            raise RuntimeError("a quantised layer was used before it was filled")
        return packed.widened(self.dtype).reshape(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight and of what runs beside it."""
        beside = sum(part.nbytes for part in self.low_rank) if self.low_rank else 0
        merged = 0 if self.merged is None else self.merged.nbytes
        held = (packed.nbytes for packed in (self.packed, self.wide) if packed is not None)
        return beside + merged + sum(held)

    def hold(self, packed: Packed) -> None:
        """Take a weight as stored; nothing is merged or beside it."""
        self.packed, self.merged, self.low_rank, self.wide = packed.reshaped(self.shape), None, None, None

    def merge(self, values: Tensor) -> None:
        """Take values in the type to compute in in its place."""
        self.packed, self.merged, self.low_rank, self.wide = None, values.reshape(self.shape), None, None

    def let_go(self) -> None:
        """Hold nothing, until the next `hold` or `merge`."""
        self.packed, self.merged, self.low_rank, self.wide = None, None, None, None

    @property
    def wide_bytes(self) -> int:
        """Bytes of the values in the type to compute in."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def widen(self) -> bool:
        """Keep the values wide beside the weight as stored; whether that is new, and saves widening them."""
        if self.packed is None or self.wide is not None or isinstance(self, nn.Embedding):
            return False
        self.wide = self.packed.wide(self.dtype, native=self.native)
        return self.wide is not None

    def drop_wide(self) -> bool:
        """Keep them no longer; whether they were kept."""
        had, self.wide = self.wide is not None, None
        return had

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cpu` and `cuda` do: what is stored moves with the layer and keeps its type."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor[:0] if tensor.dim() else tensor).device)

        if self.packed is not None:
            self.packed, self.wide = self.packed.to(fn(self.packed.stored[:0]).device), None
        self.merged = None if self.merged is None else moved(self.merged)
        self.low_rank = None if self.low_rank is None else (moved(self.low_rank[0]), moved(self.low_rank[1]))
        return super()._apply(fn, recurse)  # pyright: ignore[reportUnknownVariableType]

    def extra_repr(self) -> str:
        stored = "merged" if self.packed is None else self.packed.format.name
        return f"{tuple(self.shape)}, {stored}"


class PackedLinear(PackedLayer, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A linear layer around a weight (out, in)."""

    def forward(self, input: Tensor) -> Tensor:
        packed = self.packed if self.wide is None or input.dtype != self.dtype else self.wide
        if packed is None:
            y = F.linear(input, self.weight, self.bias)
        else:
            y = packed.product(input, native=self.native)
            y = y if self.bias is None else y + self.bias
        if self.low_rank is not None:
            down, up = self.low_rank
            y = y + F.linear(F.linear(input, down), up)
        return y


class PackedEmbedding(PackedLayer, nn.Embedding):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A table of vectors, of which those that are asked for are widened."""

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is None:
            return F.embedding(input, self.weight)
        return self.packed.take(input, self.dtype)


class PackedConv2d(PackedLayer, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A convolution, its kernel widened at each use."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.to(input.dtype), self.bias)


_LAYERS: dict[type[nn.Module], type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Embedding: PackedEmbedding,
    nn.Conv2d: PackedConv2d,
}


def packed_layer(like: nn.Module, dtype: torch.dtype, native: bool) -> PackedLayer | None:
    """A layer for a quantised weight in the place of one without its values; None for other modules."""
    made = _LAYERS.get(nn.Conv2d if isinstance(like, PictureConv) else type(like))
    if made is None or (isinstance(like, nn.Embedding) and (like.max_norm or like.sparse)):
        return None
    return made(like, tuple(like.weight.shape), dtype, native)  # pyright: ignore[reportArgumentType]


def join_low_rank(factors: Iterable[LowRank], dtype: torch.dtype) -> LowRank | None:
    """Several (down, up) as one, ranks concatenated; None for none."""
    pairs = list(factors)
    if not pairs:
        return None
    down = torch.cat([down.to(dtype) for down, _ in pairs])
    up = torch.cat([up.to(dtype) for _, up in pairs], dim=1)
    return down, up
