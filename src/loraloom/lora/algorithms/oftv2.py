"""OFTv2 (PEFT, OneTrainer): blocks of input channels are rotated, y = (x·R)·Wᵀ, so W' = W·Rᵀ blockwise.

Qiu et al. 2025 (arXiv:2506.19847). Each block stores the upper triangle of a skew matrix Q; R is its Cayley
transform by terms of a Neumann series, five where nothing else is said: I + 2Q + 2Q² + 2Q³ + Q⁴. Where PEFT's
config asks for the exact transform instead, PEFT takes that of −Q. One block may serve all channels.
Convolutions rotate their unfolded input (channel × kernel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients, cayley
from loraloom.lora.shape_check import oftv2_block


@dataclass(frozen=True, slots=True, eq=False)
class InputRotation(Additive):
    """Rᵀ − I by block (k, n, n), acting on the columns of the weight."""

    turn: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        columns = weight.reshape(weight.shape[0], -1, self.turn.shape[-1])
        turn = self.turn.to(weight).expand(columns.shape[1], -1, -1)
        changed = torch.bmm(columns.transpose(0, 1), turn)
        return changed.transpose(0, 1).reshape(weight.shape)


def build(given: Ingredients) -> InputRotation:
    stored = given.exact("oft_r")
    size = oftv2_block(stored.shape[1]) or 1
    if "scaled_oft" in given.tensors and bool(given.tensors["scaled_oft"].reshape(-1)[0]):
        stored = stored / (2 * math.sqrt(max(size - 1, 1)))
    skew = stored.new_zeros(stored.shape[0], size, size)
    above = torch.triu_indices(size, size, 1)
    skew[:, above[0], above[1]] = stored
    skew = skew - skew.transpose(1, 2)
    return InputRotation(_turn(skew, given.cayley_terms).transpose(1, 2))


def _turn(skew: Tensor, terms: int) -> Tensor:
    """R − I by the first terms of the series, the last of them halved as PEFT does; 0: exactly, for −Q."""
    if terms == 0:
        return cayley(-skew, 0) - torch.eye(skew.shape[-1])
    total = 2 * skew if terms > 1 else torch.zeros_like(skew)
    if terms > 2:
        power = skew @ skew
        total = total + 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            total = total + 2 * power
        total = total + power @ skew
    return total
