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

    def tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().tensors(trained) | {"magnitude": trained["lora_magnitude_vector"].flatten()}


KIND = Dora()
