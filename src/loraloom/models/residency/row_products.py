"""Products of low-rank factors for batches whose parts carry different LoRAs: y += s · B(A x), part by part.

Factors that most parts have, at whatever strengths, are multiplied once with the whole batch. What single
parts have is padded to one rank, and one batched product does all parts. Both add the strengths in between.
What has no finite value in the factors of one part, or overflows there, stays in that part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.models.residency.copies import Copied, Copies

Product: TypeAlias = Callable[[nn.Module, Tensor], Tensor]


@dataclass(slots=True)
class Work:
    """What products took: floating-point operations, and how often a layer had some. Those of weights that
    stay quantised are not counted: there, LoRAs run beside the weight in any case."""

    flops: int = 0
    layers: int = 0


@dataclass(slots=True)
class RowFactors:
    """down (r, in · kernel) and up (out, r) of one patch, and its strength in each part of the batch; 0: not
    there.

    is_extra: whether the products are counted as work."""

    down: Tensor
    up: Tensor
    strengths: list[float]
    is_extra: bool = True

    @property
    def users(self) -> int:
        return sum(strength != 0 for strength in self.strengths)

    @property
    def is_common(self) -> bool:
        """Whether the whole batch may be multiplied with it. 0 times what is not finite is not 0."""
        if 2 * self.users <= len(self.strengths):
            return False
        return all(self.strengths) or all(bool(f.isfinite().all()) for f in (self.down, self.up))


def row_products(
    factors: Sequence[RowFactors], parts: int, work: Work, copies: Copies | None = None
) -> list[Product]:
    """What computes these changes of one layer, in at most two products. copies: of all layers."""
    copies = copies or Copies()
    common = [one for one in factors if one.is_common]
    single = [one for one in factors if one.users and not one.is_common]
    made: list[Product] = []
    if common:
        down, up = torch.cat([one.down for one in common]), torch.cat([one.up for one in common], dim=1)
        by_part = torch.tensor([one.strengths for one in common], dtype=torch.float32).T  # (parts, patches)
        ranks = torch.tensor([len(one.down) for one in common])
        strengths = copies.of(by_part.repeat_interleave(ranks, dim=1))
        made.append(_Common(copies.of(down), copies.of(up), strengths, _counter(common, work)))
    if single:
        down, up = _padded(single, parts)
        made.append(_Single(copies.of(down), copies.of(up), _counter(single, work)))
    return made


def _counter(factors: Sequence[RowFactors], work: Work) -> Work | None:
    return work if any(one.is_extra for one in factors) else None


def _padded(factors: Sequence[RowFactors], parts: int) -> tuple[Tensor, Tensor]:
    """(parts, r, in · kernel) and (parts, out, r), strengths in them, ranks filled up with zeros."""
    own = [[one for one in factors if one.strengths[part] != 0] for part in range(parts)]
    rank = max(sum(len(one.down) for one in of) for of in own)
    first = factors[0]
    down = first.down.new_zeros(parts, rank, first.down.shape[1])
    up = first.up.new_zeros(parts, len(first.up), rank)
    for part, of in enumerate(own):
        begin = 0
        for one in of:
            end = begin + len(one.down)
            down[part, begin:end] = one.down
            up[part, :, begin:end] = one.up * one.strengths[part]
            begin = end
    return down, up


@dataclass(slots=True)
class _Common:
    """down (r, in · kernel), up (out, r), strengths (parts, r) of each rank."""

    down: Copied
    up: Copied
    strengths: Copied
    work: Work | None

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        down, up = self.down.at(x), self.up.at(x)
        strengths = self.strengths.at(x)
        parts, rank = strengths.shape
        is_image = isinstance(layer, nn.Conv2d)
        inner = _convolved(layer, x, down) if is_image else F.linear(x, down)
        _count(self.work, inner.numel() * (down.shape[1] + len(up)))
        places = [1] * (inner.dim() - 2)
        spread = (
            strengths.reshape(parts, 1, rank, *places)
            if is_image
            else strengths.reshape(parts, 1, *places, rank)
        )
        scaled = inner.unflatten(0, (parts, -1)) * spread
        inner = scaled.masked_fill(spread == 0, 0).flatten(0, 1)  # what overflowed in parts without it
        return F.conv2d(inner, up.reshape(-1, rank, 1, 1)) if is_image else F.linear(inner, up)


@dataclass(slots=True)
class _Single:
    """down (parts, r, in · kernel), up (parts, out, r)."""

    down: Copied
    up: Copied
    work: Work | None

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        down, up = self.down.at(x), self.up.at(x)
        parts = len(down)
        if isinstance(layer, nn.Conv2d):
            # Parts beside each other as groups of channels: (rows of a part, parts · in, H, W).
            beside = x.unflatten(0, (parts, -1)).transpose(0, 1).flatten(1, 2)
            inner = _convolved(layer, beside, down.flatten(0, 1), parts)
            by_part = inner.unflatten(1, (parts, -1)).transpose(0, 1)  # (parts, rows, r, H, W)
            made = torch.matmul(up[:, None], by_part.flatten(3))
            made = made.flatten(0, 1).unflatten(2, inner.shape[-2:])
        else:
            given = x.reshape(parts, -1, x.shape[-1])
            inner = torch.bmm(given, down.mT)
            made = torch.bmm(inner, up.mT).reshape(*x.shape[:-1], -1)
        _count(self.work, inner.numel() * (down.shape[2] + up.shape[1]))
        return made


def _convolved(layer: nn.Conv2d, x: Tensor, down: Tensor, parts: int = 1) -> Tensor:
    """x (N, parts · in, H, W) through the kernels of down (parts · r, in · kernel), each part by its own."""
    kernels = down.reshape(len(down), -1, *layer.kernel_size)
    return F.conv2d(x, kernels, None, layer.stride, layer.padding, layer.dilation, parts)


def _count(work: Work | None, products: int) -> None:
    if work is not None:
        work.flops += 2 * products
        work.layers += 1
