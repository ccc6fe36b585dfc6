"""(IA)³: one factor per output row or input channel, ΔW = W ⊙ w.

Liu et al. 2022 (arXiv:2205.05638). LyCORIS stores w as the deviation from 1 (`weight`, which counts only
beside `on_input`), PEFT (`ia3_l`) the factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Additive
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import said

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Scaling(Additive):
    """The deviation of each factor from 1, shaped to broadcast over the weight."""

    deviation: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        return weight * self.deviation.to(weight)


class Ia3(Algebra):
    """A vector of as many values as the weight has rows or input channels."""

    name = "ia3"
    title = "(IA)³"
    endings = {".ia3_l": "ia3", ".weight": "weight", ".on_input": "on_input"}
    needs = ("weight on_input", "ia3")
    takes = "alpha"
    single = "on_input"
    summands = ("weight",)
    only_beside = {"weight": "on_input"}
    peft = ("ia3_l",)
    of_weight = True
    in_comfyui = False

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        count = prod(shapes["ia3"] if "ia3" in shapes else shapes["weight"])
        if len(weight) < 2 or count not in (weight[0], weight[1]):
            return f"scales {count} channels, the weight is {said(weight)}"
        return None

    def build(self, given: Ingredients) -> Scaling:
        out, inputs = given.shape[:2]
        rest = [1] * (len(given.shape) - 2)
        if "ia3" in given.tensors:
            factor = given.exact("ia3")
            on_input = factor.shape[0] == 1 if factor.dim() > 1 and out != 1 else factor.numel() != out
            deviation = factor.flatten() - 1
        else:
            deviation = given.exact("weight").flatten()
            on_input = bool(given.tensors["on_input"].reshape(-1)[0])
        on_input = on_input if deviation.numel() == (inputs if on_input else out) else not on_input
        return Scaling(deviation.view(1, inputs, *rest) if on_input else deviation.view(out, 1, *rest))


ALGEBRA = Ia3()
