"""OFTv2 (PEFT, OneTrainer): blocks of input channels are rotated, y = (x·R)·Wᵀ, so W' = W·Rᵀ blockwise.

Qiu et al. 2025 (arXiv:2506.19847). Each block stores the upper triangle of a skew matrix Q; R is its Cayley
transform by terms of a Neumann series, five where nothing else is said: I + 2Q + 2Q² + 2Q³ + Q⁴. Where PEFT's
config asks for the exact transform instead, PEFT takes that of −Q. One block may serve all channels.
Convolutions rotate their unfolded input (channel × kernel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Additive, cayley
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import said

if TYPE_CHECKING:
    from torch import Tensor

TERMS = 5
"""Terms of the series where no config says otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class InputRotation(Additive):
    """Rᵀ − I by block (k, n, n), acting on the columns of the weight."""

    turn: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        columns = weight.reshape(weight.shape[0], -1, self.turn.shape[-1])
        turn = self.turn.to(weight).expand(columns.shape[1], -1, -1)
        changed = columns.transpose(0, 1).bmm(turn)
        return changed.transpose(0, 1).reshape(weight.shape)


def _block(values: int) -> int | None:
    """Block size n of a rotation stored as the n(n−1)/2 values of its upper triangle."""
    size = round((1 + (1 + 8 * values) ** 0.5) / 2)
    return size if size * (size - 1) // 2 == values else None


def _terms(config: Mapping[str, object]) -> int:
    """Terms of the series; 0: the exact transform."""
    if config.get("use_cayley_neumann") is False:
        return 0
    stated = config.get("num_cayley_neumann_terms")
    return stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0 else TERMS


class Oftv2(Algebra):
    """Upper triangles (k, n(n−1)/2). scaled_oft: OneTrainer's flag for values divided by 2√(n−1)."""

    name = "oftv2"
    title = "OFTv2"
    endings = {".oft_R.weight": "oft_r", ".oft_R": "oft_r", ".oft_R.scaled_oft": "scaled_oft"}
    needs = ("oft_r",)
    takes = "scaled_oft alpha gamma"
    single = "scaled_oft"
    peft = ("oft_R",)
    of_weight = True
    in_comfyui = False

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        blocks = shapes["oft_r"]
        size = _block(blocks[1]) if len(blocks) == 2 else None
        if size is None:
            return f"{said(blocks)} holds no upper triangles"
        channels = prod(weight[1:])
        if blocks[0] * size != channels and not (blocks[0] == 1 and channels % size == 0):
            return f"rotates {blocks[0] * size} input channels, the weight has {channels}"
        return None

    def unsaid(self, config: Mapping[str, object]) -> str | None:
        return None if _terms(config) == TERMS else "how its rotations are to be computed"

    def build(self, given: Ingredients) -> InputRotation:
        import torch

        stored = given.exact("oft_r")
        size = _block(stored.shape[1]) or 1
        if "scaled_oft" in given.tensors and bool(given.tensors["scaled_oft"].reshape(-1)[0]):
            stored = stored / (2 * math.sqrt(max(size - 1, 1)))
        skew = stored.new_zeros(stored.shape[0], size, size)
        above = torch.triu_indices(size, size, 1)
        skew[:, above[0], above[1]] = stored
        skew = skew - skew.transpose(1, 2)
        return InputRotation(_turn(skew, _terms(given.config)).transpose(1, 2))


def _turn(skew: Tensor, terms: int) -> Tensor:
    """R − I by the first terms of the series, the last of them halved as PEFT does; 0: exactly, for −Q."""
    import torch

    if terms == 0:
        return cayley(-skew, 0) - torch.eye(skew.shape[-1], device=skew.device)
    total = 2 * skew if terms > 1 else torch.zeros_like(skew)
    if terms > 2:
        power = skew @ skew
        total = total + 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            total = total + 2 * power
        total = total + power @ skew
    return total


ALGEBRA = Oftv2()
