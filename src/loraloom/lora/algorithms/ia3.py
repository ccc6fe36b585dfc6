"""(IA)³: one factor per output row or input channel, ΔW = W ⊙ w.

Liu et al. 2022 (arXiv:2205.05638). LyCORIS stores w as the deviation from 1, PEFT (`ia3_l`) the factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients


@dataclass(frozen=True, slots=True, eq=False)
class Scaling(Additive):
    """The deviation of each factor from 1, shaped to broadcast over the weight."""

    deviation: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        return weight * self.deviation.to(weight)


def build(given: Ingredients) -> Scaling:
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
