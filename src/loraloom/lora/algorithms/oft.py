"""Diag-OFT and COFT: blocks of output rows are rotated, W' = Rᵀ·W blockwise, optionally rescaled.

Qiu et al. 2023 (arXiv:2306.07280). R is the Cayley transform of the skew part of the stored blocks; COFT
bounds that part's norm by alpha × output rows, as kohya's and LyCORIS's trainers do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Additive, cayley
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import misfit_of_rotation, said

if TYPE_CHECKING:
    from torch import Tensor

_NUMBERED = re.compile(r"\.oft_blocks\.(\d+)$")


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
        changed = self.turn.to(weight).transpose(1, 2).bmm(blocks).view(weight.shape)
        if self.rescale is None:
            return changed
        factor = self.rescale.to(weight).view(-1, *[1] * (weight.dim() - 1))
        return changed.mul_(factor).add_(weight * (factor - 1))


class Oft(Algebra):
    """Blocks (k, n, n); the same name with four dimensions is a butterfly's."""

    name = "oft"
    title = "OFT"
    endings = {".oft_blocks": "oft_blocks", ".oft_diag": "oft_blocks", ".rescale": "rescale"}
    needs = ("oft_blocks",)
    takes = "rescale alpha"
    in_parts = True
    of_weight = True

    def split(self, key: str) -> tuple[str, str] | None:
        """Kohya's parts of a fused layer."""
        found = _NUMBERED.search(key)
        return (key[: found.start()], f"oft_blocks.{found[1]}") if found else None

    def holds(self, shapes: Shapes) -> bool:
        return len(shapes["oft_blocks"]) != 4

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        blocks = shapes["oft_blocks"]
        if len(blocks) != 3 or blocks[1] != blocks[2]:
            return f"rotation blocks of shape {said(blocks)} are not square"
        return misfit_of_rotation(blocks[0] * blocks[1], shapes.get("rescale"), weight)

    def part_rows(self, shapes: Shapes) -> int:
        return prod(shapes["oft_blocks"][:2])

    def build(self, given: Ingredients) -> Rotation:
        import torch

        blocks = given.exact("oft_blocks")
        alpha = float(given.tensors["alpha"]) if "alpha" in given.tensors else 0.0
        # ComfyUI v0.3.64: the bound is alpha itself, no rescaling, and the strength counts twice
        bound = alpha if given.comfyui else alpha * given.shape[0]
        rescale = (
            given.exact("rescale").flatten() if "rescale" in given.tensors and not given.comfyui else None
        )
        turn = cayley(blocks - blocks.transpose(-1, -2), bound)
        turn = turn - torch.eye(turn.shape[-1], device=turn.device)
        return Rotation(turn, rescale, 2 if given.comfyui else 1)


ALGEBRA = Oft()
