"""Full differences: ΔW is stored as it is (`diff`), of a bias too (`diff_b`). There is no alpha."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients


@dataclass(frozen=True, slots=True, eq=False)
class Difference(Additive):
    """ΔW itself, in the type that the file has."""

    stored: Tensor

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight.add_(self.stored.to(weight.device), alpha=strength)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        return float(torch.linalg.vector_norm(self.stored.to(torch.float32)))

    def delta(self, weight: Tensor) -> Tensor:
        return self.stored.to(weight, copy=True)


def build(given: Ingredients) -> Difference:
    role = next(role for role in ("diff", "diff_b") if role in given.tensors)
    return Difference(given.tensors[role].view(given.shape))
