"""`set_weight`: a parameter takes the stored value, whatever the strength.

Black Forest Labs' control LoRAs replace the scales of Flux's query and key norms this way.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients


@dataclass(frozen=True, slots=True, eq=False)
class Replacement(Additive):
    """The value that replaces the weight."""

    value: Tensor

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight.copy_(self.value)

    def delta(self, weight: Tensor) -> Tensor:
        return self.value.to(weight) - weight


def build(given: Ingredients) -> Replacement:
    return Replacement(given.exact("set_weight").view(given.shape))
