"""A bias trained beside a LoRA (PEFT's `lora_bias=True`): Δbias = γ · `lora_B.bias`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients


@dataclass(frozen=True, slots=True, eq=False)
class BiasOfUp(Additive):
    """The bias of the up projection, scaled as the LoRA that it belongs to."""

    scaled: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        return self.scaled.to(weight, copy=True)


def build(given: Ingredients) -> BiasOfUp:
    return BiasOfUp(given.exact("up_bias").view(given.shape) * given.gamma)
