"""LoRA and LoCon: ΔW = γ · up · down, with a convolution's kernel in `down` or in a Tucker core between.

Hu et al. 2021 (arXiv:2106.09685); LyCORIS (arXiv:2309.14859), whose core contracts as
ΔW[o, i, …] = Σ up[o, p] · mid[p, q, …] · down[q, i].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients
from loraloom.lora.component import Shape
from loraloom.weights.patch import Factors


@dataclass(frozen=True, slots=True, eq=False)
class LowRank(Additive):
    """ΔW = γ · up · down, reshaped to the weight, which is first padded with zeros where ΔW is larger."""

    up: Tensor
    down: Tensor
    gamma: float
    shape: Shape

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        if tuple(weight.shape) != self.shape:
            weight = _enlarge(weight, self.shape)
        flat = weight.view(self.shape[0], -1)
        flat.addmm_(self.up.to(weight), self.down.to(weight), alpha=strength * self.gamma)
        return weight

    def delta(self, weight: Tensor) -> Tensor:
        product = self.up.to(weight) @ self.down.to(weight)
        return product.mul_(self.gamma).view(self.shape)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        """‖up · down‖² = tr((upᵀ up)(down downᵀ)): rank × rank products instead of the whole."""
        up, down = self.up.to(torch.float32), self.down.to(torch.float32)
        return abs(self.gamma) * math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))

    def factors(self) -> Factors | None:
        if len(self.shape) != 2 and self.down.shape[1] != self.shape[1]:
            return None  # a kernel wider than 1×1 is no matrix product over channels
        return Factors(self.down.to(torch.float32), self.up.to(torch.float32) * self.gamma)


@dataclass(frozen=True, slots=True, eq=False)
class Tucker(Additive):
    """ΔW = γ · up ×₁ core ×₂ down: a k×k kernel through a small core."""

    up: Tensor
    core: Tensor
    down: Tensor
    gamma: float
    shape: Shape

    def delta(self, weight: Tensor) -> Tensor:
        inner = torch.einsum("p q ..., q i -> p i ...", self.core.to(weight), self.down.to(weight))
        made = self.up.to(weight) @ inner.flatten(1)
        return made.mul_(self.gamma).view(self.shape)


def _enlarge(weight: Tensor, shape: Shape) -> Tensor:
    larger = weight.new_zeros(shape)
    larger[tuple(slice(0, size) for size in weight.shape)] = weight
    return larger


def build(given: Ingredients) -> LowRank | Tucker:
    up, down = given.tensors["up"], given.tensors["down"]
    if "mid" in given.tensors:
        return Tucker(given.matrix("up"), given.exact("mid"), given.matrix("down"), given.gamma, given.shape)
    return LowRank(up.flatten(1), down.flatten(1), given.gamma, given.shape)
