"""BOFT as PEFT saves it (`boft_R`, `boft_s`): input channels pass through stages of small rotations.

Liu et al. 2023 (arXiv:2311.06243): W' = s ⊙ (W · B₀ᵀ · B₁ᵀ · …). Stage i rotates pairs of half-blocks that
lie 2^i half-blocks apart; each rotation is the Cayley transform (I − Q)(I + Q)⁻¹ of Q = (R − Rᵀ) / 2.
Convolutions rotate their unfolded input (channel × kernel).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients, cayley


@dataclass(frozen=True, slots=True, eq=False)
class InputButterfly(Additive):
    """Rotations by stage and block (m, k, b, b), and the factor of each output row."""

    turns: Tensor
    scale: Tensor | None

    def delta(self, weight: Tensor) -> Tensor:
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


def build(given: Ingredients) -> InputButterfly:
    stored = given.exact("boft_r")
    turns = cayley((stored.transpose(-1, -2) - stored) / 2, 0)
    scale = given.exact("boft_s").reshape(-1, 1) if "boft_s" in given.tensors else None
    return InputButterfly(turns, scale)
