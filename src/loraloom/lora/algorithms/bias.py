"""A bias trained beside a LoRA (PEFT's `lora_bias=True`): Δbias = γ · `lora_B.bias`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from loraloom.lora.algebra import Algebra, Ingredients, Shapes, Tensors
from loraloom.lora.changes import Stored
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import dimension, misfit_of_values


class BiasOfUp(Algebra):
    """The bias of the up projection, scaled as the LoRA that it belongs to, whose `down` tells the rank."""

    name = "bias"
    title = "bias"
    endings = {".lora_B.bias": "up_bias", ".lora_up.bias": "up_bias"}
    needs_on_bias = ("up_bias",)
    takes = "alpha gamma down"
    summands = ("up_bias",)
    scaled = True
    in_comfyui = False

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        return misfit_of_values(shapes["up_bias"], weight)

    def rank(self, shapes: Shapes) -> int | None:
        return dimension(shapes["down"], 0) if "down" in shapes else None

    def build(self, given: Ingredients) -> Stored:
        return Stored(given.exact("up_bias").view(given.shape) * given.gamma)

    def written(self, tensors: Tensors) -> dict[str, Tensor]:
        """Alpha and down are written with the LoRA beside it."""
        return super().written({"up_bias": tensors["up_bias"]} if "down" in tensors else tensors)

    def in_diffusers(self, tensors: Tensors, gamma: float) -> dict[str, Tensor] | None:
        if "down" not in tensors:
            return None
        return self.written(tensors if gamma == 1 else {**tensors, **self.times(tensors, gamma)})


ALGEBRA = BiasOfUp()
