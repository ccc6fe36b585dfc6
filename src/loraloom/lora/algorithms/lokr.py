"""LoKr: ΔW = γ · w1 ⊗ w2 (Kronecker), each factor whole or low-rank, w2 optionally through a Tucker core.

LyCORIS (arXiv:2309.14859). γ is 1 where both factors are whole, whatever alpha says: the trainer fixes it so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients, Nothing


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker(Additive):
    """The Kronecker product of a small matrix and a larger one that carries the kernel."""

    given: Ingredients

    def delta(self, weight: Tensor) -> Tensor:
        first, second = self._first(weight), self._second(weight)
        return torch.kron(first, second).mul_(self.given.gamma).view(self.given.shape)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        """A Kronecker product's norm is the product of the norms."""
        like = torch.empty(0)
        first, second = self._first(like), self._second(like)
        return abs(self.given.gamma) * float(first.norm()) * float(second.norm())

    def _first(self, like: Tensor) -> Tensor:
        if "lokr_w1" in self.given.tensors:
            return self.given.exact("lokr_w1", like)
        return self.given.exact("lokr_w1_a", like) @ self.given.exact("lokr_w1_b", like)

    def _second(self, like: Tensor) -> Tensor:
        """w2, its kernel flattened into its columns."""
        if "lokr_w2" in self.given.tensors:
            return self.given.matrix("lokr_w2", like)
        if "lokr_t2" not in self.given.tensors:
            return self.given.exact("lokr_w2_a", like) @ self.given.matrix("lokr_w2_b", like)
        inner = torch.einsum(
            "i j ..., j r -> i r ...", self.given.exact("lokr_t2", like), self.given.exact("lokr_w2_b", like)
        )
        return torch.einsum("i r ..., i p -> p r ...", inner, self.given.exact("lokr_w2_a", like)).flatten(1)


def build(given: Ingredients) -> Kronecker | Nothing:
    if given.comfyui and "lokr_t2" in given.tensors:
        return Nothing()  # ComfyUI v0.3.64 fails on these and goes on without them
    return Kronecker(given)
