"""GLoRA: ΔW = γ · (W·A + B), A = a1·a2 over the input channels, B = b1·b2 like a LoRA.

Chavan et al. 2023 (arXiv:2306.07967) as LyCORIS stores it. The first generation of files has the factors in
the opposite order: ΔW = γ · (b2·b1 + (W·a2)·a1). ΔW depends on the weight as it is when the patch is
applied, so the order in a stack matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Additive
from loraloom.lora.component import Shape
from loraloom.lora.factored import through
from loraloom.lora.shape_check import dimension, misfit_of_matrix, said

if TYPE_CHECKING:
    from torch import Tensor


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
        import torch

        a1, a2, b1, b2 = (factor.to(weight) for factor in (self.a1, self.a2, self.b1, self.b2))
        if self.b_core is not None:
            b2 = through(self.b_core.to(weight), b2)
        made = b1 @ b2
        narrow = torch.einsum("o i ..., i r -> o r ...", weight, a1)
        scaled = torch.einsum("o r ..., r j -> o j ...", narrow, a2)
        return scaled.add_(made.view(weight.shape)).mul_(self.gamma)


def _is_old(shapes: Shapes) -> bool:
    """Whether a module is of the first generation."""
    try:
        new = shapes["b1"][1] == shapes["b2"][0] == shapes["a1"][1] == shapes["a2"][0]
        old = shapes["b2"][1] == shapes["b1"][0] == shapes["a2"][1] == shapes["a1"][0]
    except IndexError:
        return False
    return old and not new


class Glora(Algebra):
    """Two pairs of factors, and the Tucker core of the second where there is one."""

    name = "glora"
    title = "GLoRA"
    endings = {
        ".a1.weight": "a1",
        ".a2.weight": "a2",
        ".b1.weight": "b1",
        ".b2.weight": "b2",
        ".bm.weight": "bm",
    }
    needs = ("a1 a2 b1 b2",)
    takes = "bm alpha gamma"
    summands = ("a1 a2", "b1 b2 bm")
    scaled = True
    of_weight = True

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        a1, a2, b1, b2 = (shapes[role] for role in ("a1", "a2", "b1", "b2"))
        if min(map(len, (a1, a2, b1, b2))) < 2:
            return "its factors are no matrices"
        if _is_old(shapes):
            a1, a2, b1, b2 = a2, a1, b2, b1
        if "bm" in shapes:
            core = shapes["bm"]
            if len(core) < 3 or core[:2] != (b1[1], b2[0]):
                return f"its middle factor {said(core)} does not join {said(b1)} and {said(b2)}"
            columns = b2[1] * prod(core[2:])
        else:
            columns = prod(b2[1:])
        plain = all(prod(shape[2:]) == 1 for shape in (a1, a2, b1))
        if not plain or b1[1] != b2[0] or a1[1] != a2[0] or len(weight) < 2:
            return f"factors {said(a1)}, {said(a2)}, {said(b1)}, {said(b2)} do not chain"
        if a1[0] != weight[1] or a2[1] != weight[1]:
            return f"made for {a1[0]} input channels, the weight has {weight[1]}"
        return misfit_of_matrix((b1[0], columns), weight)

    def rank(self, shapes: Shapes) -> int | None:
        return dimension(shapes["b1"], 0 if _is_old(shapes) else 1)

    def build(self, given: Ingredients) -> Generalised:
        a1, a2, b1, b2 = (given.matrix(role) for role in ("a1", "a2", "b1", "b2"))
        if _is_old({role: tuple(tensor.shape) for role, tensor in given.tensors.items()}):
            a1, a2, b1, b2 = a2, a1, b2, b1
        # ComfyUI v0.3.64 does not read the core of B
        core = given.exact("bm") if "bm" in given.tensors and not given.comfyui else None
        return Generalised(a1, a2, b1, b2, core, given.gamma)


ALGEBRA = Glora()
