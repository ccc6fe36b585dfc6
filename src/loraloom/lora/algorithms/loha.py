"""LoHa: ΔW = γ · (w1a · w1b) ⊙ (w2a · w2b), each product optionally through a Tucker core.

LyCORIS (arXiv:2309.14859), after FedPara (arXiv:2108.06098). With a core t of rank × rank × kernel:
product[p, r, …] = Σ t[i, j, …] · b[j, r] · a[i, p].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard(Additive):
    """The elementwise product of two low-rank matrices."""

    given: Ingredients

    def delta(self, weight: Tensor) -> Tensor:
        first, second = self._product("1", weight), self._product("2", weight)
        return first.mul_(second).mul_(self.given.gamma).view(self.given.shape)

    def _product(self, index: str, like: Tensor) -> Tensor:
        a, b = (self.given.exact(f"hada_w{index}_{side}", like) for side in "ab")
        if f"hada_t{index}" not in self.given.tensors:
            return a @ b
        core = self.given.exact(f"hada_t{index}", like)
        inner = torch.einsum("i j ..., j r -> i r ...", core, b)
        return torch.einsum("i r ..., i p -> p r ...", inner, a).flatten(1)


def build(given: Ingredients) -> Hadamard:
    return Hadamard(given)
