"""BOFT as PEFT saves it (`boft_R`, `boft_s`): input channels pass through stages of small rotations.

Liu et al. 2023 (arXiv:2311.06243): W' = s ⊙ (W · B₀ᵀ · B₁ᵀ · …). Stage i rotates pairs of half-blocks that
lie 2^i half-blocks apart; each rotation is the Cayley transform (I − Q)(I + Q)⁻¹ of Q = (R − Rᵀ) / 2.
Convolutions rotate their unfolded input (channel × kernel).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Additive, cayley
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import said

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class InputButterfly(Additive):
    """Rotations by stage and block (m, k, b, b), and the factor of each output row."""

    turns: Tensor
    scale: Tensor | None

    def delta(self, weight: Tensor) -> Tensor:
        import torch

        stages, _, size, _ = self.turns.shape
        turns = self.turns.to(weight)
        columns = weight.flatten(1)
        for stage in range(stages):
            distance = 2**stage
            columns = _exchanged(columns, 2, distance, size) if stage else columns
            blocks = columns.unflatten(1, (-1, size))
            columns = torch.einsum("o k i, k j i -> o k j", blocks, turns[stage]).flatten(1)
            columns = _exchanged(columns, distance, 2, size) if stage else columns
        if self.scale is not None:
            columns = columns * self.scale.to(weight)
        return columns.view(weight.shape) - weight


def _exchanged(columns: Tensor, outer: int, inner: int, size: int) -> Tensor:
    """Half-blocks of columns numbered (…, outer, inner) renumbered (…, inner, outer)."""
    return columns.unflatten(1, (-1, outer, inner, size // 2)).transpose(2, 3).flatten(1)


class BoftInput(Algebra):
    """Blocks (m, k, b, b), and one factor per output row."""

    name = "boft_input"
    title = "BOFT (PEFT)"
    endings = {".boft_R": "boft_r", ".boft_s": "boft_s"}
    needs = ("boft_r",)
    takes = "boft_s alpha"
    peft = ("boft_R", "boft_s")
    of_weight = True
    in_comfyui = False

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        blocks = shapes["boft_r"]
        if len(blocks) != 4 or blocks[2] != blocks[3] or 0 in blocks:
            return f"butterfly blocks of shape {said(blocks)} are not square"
        stages, count, size, _ = blocks
        if stages > 1 and (size % 2 or count % 2 ** (stages - 1)):
            return f"{stages} butterfly stages do not divide {count} blocks of {size}"
        channels = prod(weight[1:])
        if len(weight) < 2 or count * size != channels:
            return f"rotates {count * size} input channels, the weight has {channels}"
        if "boft_s" in shapes and prod(shapes["boft_s"]) != weight[0]:
            return f"scales {prod(shapes['boft_s'])} output channels, the weight has {weight[0]}"
        return None

    def build(self, given: Ingredients) -> InputButterfly:
        stored = given.exact("boft_r")
        turns = cayley((stored.transpose(-1, -2) - stored) / 2, 0)
        scale = given.exact("boft_s").reshape(-1, 1) if "boft_s" in given.tensors else None
        return InputButterfly(turns, scale)


ALGEBRA = BoftInput()
