"""LoRAs reduced to what the weights see of them, for tests of residency."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.weights.patch import Factors, Patch, PatchUse, Rows, Stack


@dataclass(frozen=True, eq=False)
class PlainPatch:
    """W += strength · up · down; `dense` patches offer no factors."""

    down: Tensor
    up: Tensor
    name: str
    rows: Rows = None
    dense: bool = False

    @property
    def signature(self) -> Hashable:
        return self.name

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight.add_((self.up @ self.down).reshape(weight.shape).to(weight), alpha=strength)

    def factors(self) -> Factors | None:
        return None if self.dense else Factors(self.down, self.up)


@dataclass(frozen=True, eq=False)
class PlainLora:
    """A source of patches: equal digests, equal content."""

    digest: str
    held: Mapping[str, Sequence[Patch]]

    def patches(self) -> Mapping[str, Sequence[Patch]]:
        return self.held

    def at(self, strength: float) -> Stack:
        return (PatchUse(self, strength),)


def plain_lora(
    digest: str,
    shapes: Mapping[str, tuple[int, ...]],
    rows: Mapping[str, Rows] | None = None,
    dense: bool = False,
) -> PlainLora:
    """A seeded LoRA of rank 2 for these native weights."""
    generator = torch.Generator().manual_seed(sum(digest.encode()))
    held: dict[str, list[Patch]] = {}
    for native, shape in shapes.items():
        own = (rows or {}).get(native)
        height = shape[0] if own is None else own[1] - own[0]
        width = torch.Size(shape[1:]).numel()
        down = torch.randn(2, width, generator=generator) / width**0.5
        up = 0.3 * torch.randn(height, 2, generator=generator)
        held[native] = [PlainPatch(down, up, f"{digest}/{native}", own, dense)]
    return PlainLora(digest, held)
