"""What every algorithm is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loraloom.lora.component import Shape
from loraloom.weights.patch import Factors


@dataclass(frozen=True, slots=True)
class Ingredients:
    """One module's tensors by role, as stored; the shape of the weight rows they are for; γ.

    comfyui: give ComfyUI v0.3.64's result where it differs from what the trainer meant.
    """

    tensors: Mapping[str, Tensor]
    shape: Shape
    gamma: float
    comfyui: bool = False

    def matrix(self, role: str) -> Tensor:
        """A tensor in float32, flattened behind its first dimension."""
        return self.tensors[role].to(torch.float32).flatten(1)

    def exact(self, role: str) -> Tensor:
        """A tensor in float32, its shape kept."""
        return self.tensors[role].to(torch.float32)


class Change(Protocol):
    """One algebra of one module, ready to be applied to float32 weights of its shape."""

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The changed weight; `weight` may be changed in place and returned."""
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """γΔ at strength 1, in fresh memory, for a weight that stays as it is."""
        ...

    def factors(self) -> Factors | None:
        """The change as down (r, in) and up (out, r), γ in it; None where it has no such form."""
        ...


class Additive:
    """A change whose Δ does not depend on the strength: W += strength · Δ(W)."""

    def delta(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight.add_(self.delta(weight), alpha=strength)

    def factors(self) -> Factors | None:
        return None


class Nothing(Additive):
    """No change at all: what ComfyUI is left with where its own code fails."""

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight

    def delta(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)


def cayley(skew: Tensor, bound: float) -> Tensor:
    """R = (I + Q)(I − Q)⁻¹ of skew matrices; where `bound` is positive, Q is first scaled down to that norm."""
    if bound > 0:
        norm = torch.linalg.vector_norm(skew) + 1e-8
        if norm > bound:
            skew = skew * (bound / norm)
    same = torch.eye(skew.shape[-1])
    return torch.linalg.solve(same - skew, same + skew, left=False)
