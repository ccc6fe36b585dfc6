"""BOFT: output rows pass through butterfly stages of small rotations.

Liu et al. 2023 (arXiv:2311.06243) as LyCORIS stores it: stage i mixes rows that lie within 2^i blocks of each
other. The strength leads every stage's rotation towards the identity, as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Additive, Nothing, cayley
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import misfit_of_rotation, said

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Butterfly(Additive):
    """Rotations by stage and block (m, k, b, b), and the factor of each output row.

    again: the strength also scales the change as a whole (ComfyUI v0.3.64).
    """

    turns: Tensor
    rescale: Tensor | None
    again: bool

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        changed = self._through(weight, strength)
        if not self.again:
            return changed
        return weight.lerp_(changed, strength)

    def delta(self, weight: Tensor) -> Tensor:
        return self._through(weight, 1.0) - weight

    def _through(self, weight: Tensor, strength: float) -> Tensor:
        import torch

        stages, _, size, _ = self.turns.shape
        same, turns = torch.eye(size, device=weight.device), self.turns.to(weight)
        rows = weight
        for stage in range(stages):
            turn = torch.lerp(same, turns[stage], strength) if strength != 1 else turns[stage]
            stride = 2**stage * (size // 2)
            rows = _pair(rows, 2, stride).unflatten(0, (-1, size))
            rows = torch.einsum("b i j, b j ... -> b i ...", turn, rows).flatten(0, 1)
            rows = _pair(rows, stride, 2)
        if self.rescale is None:
            return rows
        amount = 1.0 if self.again else strength
        rescale = self.rescale.to(weight)
        factor = torch.lerp(torch.ones_like(rescale), rescale, amount)
        return rows * factor.view(-1, *[1] * (weight.dim() - 1))


def _pair(rows: Tensor, outer: int, inner: int) -> Tensor:
    """Rows numbered (…, outer, inner) renumbered (…, inner, outer)."""
    return rows.unflatten(0, (-1, outer, inner)).transpose(1, 2).flatten(0, 2)


class Boft(Algebra):
    """Blocks (m, k, b, b), under the name that plain OFT's have."""

    name = "boft"
    title = "BOFT"
    endings = {".oft_blocks": "oft_blocks", ".rescale": "rescale"}
    needs = ("oft_blocks",)
    takes = "rescale alpha"
    of_weight = True

    def holds(self, shapes: Shapes) -> bool:
        return len(shapes["oft_blocks"]) == 4

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        blocks = shapes["oft_blocks"]
        stages, count, size, other = blocks
        if size != other or size % 2 or 0 in blocks:
            return f"butterfly blocks of shape {said(blocks)} are not square of even size"
        if (count * size) % (2**stages * (size // 2)):
            return f"{stages} butterfly stages do not divide {count * size} channels"
        return misfit_of_rotation(count * size, shapes.get("rescale"), weight)

    def build(self, given: Ingredients) -> Butterfly | Nothing:
        blocks = given.exact("oft_blocks")
        if given.comfyui and "alpha" not in given.tensors:
            return Nothing()  # ComfyUI v0.3.64 fails without alpha and goes on
        alpha = float(given.tensors["alpha"]) if "alpha" in given.tensors else 0.0
        bound = alpha if given.comfyui else alpha * given.shape[0]
        rescale = given.exact("rescale").flatten() if "rescale" in given.tensors else None
        return Butterfly(cayley(blocks - blocks.transpose(-1, -2), bound), rescale, given.comfyui)


ALGEBRA = Boft()
