"""LoHa: ΔW = γ · (w1a · w1b) ⊙ (w2a · w2b), each product optionally through a Tucker core.

LyCORIS (arXiv:2309.14859), after FedPara (arXiv:2108.06098). With a core t of rank × rank × kernel:
product[p, r, …] = Σ t[i, j, …] · b[j, r] · a[i, p].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients

MAX_GRAM_RANK = 24
"""Rank up to which the norm is cheaper by Gram matrices than by the whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard(Additive):
    """The elementwise product of two low-rank matrices."""

    given: Ingredients

    def delta(self, weight: Tensor) -> Tensor:
        first, second = self._product("1", weight), self._product("2", weight)
        return first.mul_(second).mul_(self.given.gamma).view(self.given.shape)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        """Without cores the change is a product of rank r²: its norm needs r² × r² products only."""
        tensors = self.given.tensors
        if "hada_t1" in tensors or "hada_t2" in tensors or tensors["hada_w1_b"].shape[0] > MAX_GRAM_RANK:
            return Additive.norm(self, weight)
        a, b, c, d = (self.given.exact(f"hada_{name}") for name in ("w1_a", "w2_a", "w1_b", "w2_b"))
        up = torch.einsum("i p, i q -> p q i", a, b).flatten(0, 1)
        down = torch.einsum("p j, q j -> p q j", c, d).flatten(0, 1)
        square = float(((up @ up.T) * (down @ down.T)).sum())
        return abs(self.given.gamma) * math.sqrt(max(square, 0.0))

    def _product(self, index: str, like: Tensor) -> Tensor:
        a, b = (self.given.exact(f"hada_w{index}_{side}", like) for side in "ab")
        if f"hada_t{index}" not in self.given.tensors:
            return a @ b
        core = self.given.exact(f"hada_t{index}", like)
        inner = torch.einsum("i j ..., j r -> i r ...", core, b)
        return torch.einsum("i r ..., i p -> p r ...", inner, a).flatten(1)


def build(given: Ingredients) -> Hadamard:
    return Hadamard(given)
