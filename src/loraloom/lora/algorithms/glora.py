"""GLoRA: ΔW = γ · (W·A + B), A = a1·a2 over the input channels, B = b1·b2 like a LoRA.

Chavan et al. 2023 (arXiv:2306.07967) as LyCORIS stores it. The first generation of files has the factors in
the opposite order: ΔW = γ · (b2·b1 + (W·a2)·a1). ΔW depends on the weight as it is when the patch is
applied, so the order in a stack matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Ingredients
from loraloom.lora.alpha import is_old_glora


@dataclass(frozen=True, slots=True, eq=False)
class Generalised(Additive):
    """A low-rank product of the weight itself, and a low-rank matrix. b_core: the Tucker core of B."""

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    b_core: Tensor | None
    gamma: float

    def delta(self, weight: Tensor) -> Tensor:
        a1, a2, b1, b2 = (factor.to(weight) for factor in (self.a1, self.a2, self.b1, self.b2))
        if self.b_core is not None:
            b2 = torch.einsum("m n ..., n j -> m j ...", self.b_core.to(weight), b2).flatten(1)
        made = b1 @ b2
        narrow = torch.einsum("o i ..., i r -> o r ...", weight, a1)
        scaled = torch.einsum("o r ..., r j -> o j ...", narrow, a2)
        return scaled.add_(made.view(weight.shape)).mul_(self.gamma)


def build(given: Ingredients) -> Generalised:
    a1, a2, b1, b2 = (given.matrix(role) for role in ("a1", "a2", "b1", "b2"))
    if is_old_glora({role: tuple(tensor.shape) for role, tensor in given.tensors.items()}):
        a1, a2, b1, b2 = a2, a1, b2, b1
    # ComfyUI v0.3.64 does not read the core of B
    core = given.exact("bm") if "bm" in given.tensors and not given.comfyui else None
    return Generalised(a1, a2, b1, b2, core, given.gamma)
