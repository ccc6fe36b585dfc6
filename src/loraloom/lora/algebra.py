"""What every algorithm is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loraloom.lora.alpha import CAYLEY_TERMS
from loraloom.lora.component import Shape
from loraloom.weights.patch import Factors


@dataclass(frozen=True, slots=True)
class Ingredients:
    """One module's tensors by role, as stored; the shape of the weight rows they are for; γ.

    comfyui: give ComfyUI v0.3.64's result where it differs from what the trainer meant.
    cayley_terms: of the series by which OFTv2 was trained; 0: by the exact transform.
    """

    tensors: Mapping[str, Tensor]
    shape: Shape
    gamma: float
    comfyui: bool = False
    cayley_terms: int = CAYLEY_TERMS

    def exact(self, role: str, like: Tensor | None = None) -> Tensor:
        """A tensor in float32, its shape kept, on the device of `like`."""
        device = None if like is None else like.device
        return self.tensors[role].to(device, torch.float32)

    def matrix(self, role: str, like: Tensor | None = None) -> Tensor:
        """The same, flattened behind its first dimension."""
        return self.exact(role, like).flatten(1)


class Change(Protocol):
    """One algebra of one module, ready to be applied to float32 weights of its shape."""

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The changed weight; `weight` may be changed in place and returned."""
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """γΔ at strength 1, in fresh memory, for a weight that stays as it is."""
        ...

    def norm(self, weight: Callable[[], Tensor]) -> float:
        """‖γΔ‖ at strength 1; `weight` makes the weight for the algebras that need it."""
        ...

    def factors(self) -> Factors | None:
        """The change as down (r, in) and up (out, r), γ in it; None where it has no such form."""
        ...


class Additive:
    """A change whose Δ does not depend on the strength: W += strength · Δ(W).

    Algorithms extend it with their Δ, and with shorter ways to apply or measure it where they have one.
    """

    def delta(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight.add_(self.delta(weight), alpha=strength)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        return float(torch.linalg.vector_norm(self.delta(weight())))

    def factors(self) -> Factors | None:
        return None


class Nothing(Additive):
    """No change at all: what ComfyUI is left with where its own code fails."""

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight

    def delta(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)


def cayley(skew: Tensor, bound: float) -> Tensor:
    """R = (I + Q)(I − Q)⁻¹ of skew matrices Q, first scaled down to norm `bound` where that is positive."""
    if bound > 0:
        norm = torch.linalg.vector_norm(skew) + 1e-8
        if norm > bound:
            skew = skew * (bound / norm)
    same = torch.eye(skew.shape[-1])
    return torch.linalg.solve(same - skew, same + skew, left=False)
