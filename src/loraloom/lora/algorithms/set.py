"""`set_weight`: a parameter takes the stored value, whatever the strength.

Black Forest Labs' control LoRAs replace the scales of Flux's query and key norms this way; there the tensor
is the norm's own `scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Additive
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import misfit_of_values


@dataclass(frozen=True, slots=True, eq=False)
class Replacement(Additive):
    """The value that replaces the weight."""

    value: Tensor

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight.copy_(self.value)

    def delta(self, weight: Tensor) -> Tensor:
        return self.value.to(weight) - weight


class Set(Algebra):
    """One tensor that is the weight."""

    name = "set"
    title = "replaced weight"
    endings = {".set_weight": "set_weight"}
    needs = ("set_weight",)
    takes = "alpha"
    of_weight = True

    def alone(self, module: str, role: str) -> tuple[str, str] | None:
        is_scale_of_norm = role == "gamma" and module.rsplit(".", 1)[-1].endswith("_norm")
        return (module + ".scale", "set_weight") if is_scale_of_norm else None

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        return misfit_of_values(shapes["set_weight"], weight)

    def build(self, given: Ingredients) -> Replacement:
        return Replacement(given.exact("set_weight").view(given.shape))


ALGEBRA = Set()
