"""What several algorithms' changes are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.weights.patch import Factors


class Additive:
    """A change whose Δ does not depend on the strength: W += strength · Δ(W).

    Algorithms extend it with their Δ, and with shorter ways to apply or measure it where they have one.
    """

    def delta(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight.add_(self.delta(weight), alpha=strength)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        return float(self.delta(weight()).norm())

    def factors(self) -> Factors | None:
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Stored(Additive):
    """Δ as it is, in the type that the file has."""

    values: Tensor

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        values = self.values.to(weight.device)
        # torch adds no floats of 8 bits to others
        return weight.add_(values.to(weight) if values.element_size() == 1 else values, alpha=strength)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        return float(self.values.float().norm())

    def delta(self, weight: Tensor) -> Tensor:
        return self.values.to(weight, copy=True)


class Nothing(Additive):
    """No change at all: what ComfyUI is left with where its own code fails."""

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight

    def delta(self, weight: Tensor) -> Tensor:
        return weight.new_zeros(weight.shape)


def cayley(skew: Tensor, bound: float) -> Tensor:
    """R = (I + Q)(I − Q)⁻¹ of skew matrices Q, first scaled down to norm `bound` where that is positive."""
    import torch

    if bound > 0:
        norm = torch.linalg.vector_norm(skew) + 1e-8
        if norm > bound:
            skew = skew * (bound / norm)
    same = torch.eye(skew.shape[-1], device=skew.device)
    return torch.linalg.solve(same - skew, same + skew, left=False)
