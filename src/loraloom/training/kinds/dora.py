"""DoRA (Liu et al. 2024, arXiv:2402.09353): a LoRA gives the direction, magnitudes are trained apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraloom.training.kind import LowRankKind

if TYPE_CHECKING:
    from torch import Tensor


class Dora(LowRankKind):
    """One magnitude per output row."""

    name = "dora"
    wrapper = "dora"
    module = "lycoris.kohya"
    algorithm = "lora"
    decomposed = True

    def arguments(self) -> dict[str, str]:
        return super().arguments() | {"dora_wd": "True"}

    def can_train(self, weight: Tensor) -> bool:
        """A row of zeros alone has no direction: PEFT divides 0 by 0 there, and all that follows is NaN."""
        return bool(weight.detach().flatten(1).ne(0).any(dim=1).all())

    def tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().tensors(trained) | {"magnitude": trained["lora_magnitude_vector"].flatten()}


KIND = Dora()
