"""Diag-OFT and COFT: blocks of output rows are rotated, W' = Rᵀ·W blockwise, optionally rescaled.

Qiu et al. 2023 (arXiv:2306.07280). R is the Cayley transform of the skew part of the stored blocks; COFT
bounds that part's norm by alpha × output rows, as kohya's and LyCORIS's trainers do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients, cayley


@dataclass(frozen=True, slots=True, eq=False)
class Rotation(Additive):
    """R − I by block (k, n, n), and the factor of each output row. power: how often the strength counts."""

    turn: Tensor
    rescale: Tensor | None
    power: int = 1

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight.add_(self.delta(weight), alpha=strength**self.power)

    def delta(self, weight: Tensor) -> Tensor:
        count, size, _ = self.turn.shape
        blocks = weight.reshape(count, size, -1)
        changed = torch.bmm(self.turn.to(weight).transpose(1, 2), blocks).view(weight.shape)
        if self.rescale is None:
            return changed
        factor = self.rescale.to(weight).view(-1, *[1] * (weight.dim() - 1))
        return changed.mul_(factor).add_(weight * (factor - 1))


def build(given: Ingredients) -> Rotation:
    blocks = given.exact("oft_blocks")
    alpha = float(given.tensors["alpha"]) if "alpha" in given.tensors else 0.0
    # ComfyUI v0.3.64: the bound is alpha itself, no rescaling, and the strength counts twice
    bound = alpha if given.comfyui else alpha * given.shape[0]
    rescale = given.exact("rescale").flatten() if "rescale" in given.tensors and not given.comfyui else None
    turn = cayley(blocks - blocks.transpose(-1, -2), bound)
    turn = turn - torch.eye(turn.shape[-1])
    return Rotation(turn, rescale, 2 if given.comfyui else 1)
