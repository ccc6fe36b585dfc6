"""LoHa: ΔW = γ · (w1a · w1b) ⊙ (w2a · w2b), each product optionally through a Tucker core.

LyCORIS (arXiv:2309.14859), after FedPara (arXiv:2108.06098). With a core t of rank × rank × kernel:
product[p, r, …] = Σ t[i, j, …] · b[j, r] · a[i, p].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Shapes, Tensors
from loraloom.lora.changes import Additive
from loraloom.lora.component import Shape
from loraloom.lora.factored import Factored, lycoris_product, through
from loraloom.lora.shape_check import dimension, misfit_of_matrix, said

if TYPE_CHECKING:
    from torch import Tensor

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
        import torch

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
        return lycoris_product(self.given.exact(f"hada_t{index}", like), a, b)


class Loha(Algebra):
    """Two pairs a (out, rank) and b (rank, columns); with a core, a (rank, out) and b (rank, in)."""

    name = "loha"
    title = "LoHa"
    endings = {
        ".hada_w1_a": "hada_w1_a",
        ".hada_w1_b": "hada_w1_b",
        ".hada_w2_a": "hada_w2_a",
        ".hada_w2_b": "hada_w2_b",
        ".hada_t1": "hada_t1",
        ".hada_t2": "hada_t2",
    }
    needs = ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b",)
    takes = "hada_t1 hada_t2 alpha gamma"
    summands = ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2",)
    peft = tuple(ending.removeprefix(".") for ending in endings)
    scaled = True
    wrapped = True

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        made: list[Shape] = []
        for index in "12":
            a, b, core = shapes[f"hada_w{index}_a"], shapes[f"hada_w{index}_b"], shapes.get(f"hada_t{index}")
            if len(a) != 2 or len(b) != 2:
                return f"factors of shapes {said(a)} and {said(b)} are no matrices"
            if core is not None:
                if len(core) < 3 or a[0] != core[0] or b[0] != core[1]:
                    return f"its core {said(core)} does not join {said(a)} and {said(b)}"
                made.append((a[1], b[1] * prod(core[2:])))
            elif a[1] != b[0]:
                return f"ranks {a[1]} and {b[0]} differ"
            else:
                made.append((a[0], b[1]))
        if made[0] != made[1]:
            return f"its two products are {said(made[0])} and {said(made[1])}"
        return misfit_of_matrix(made[0], weight)

    def inputs(self, shapes: Shapes) -> int | None:
        return dimension(shapes["hada_w1_b"], -1)

    def rank(self, shapes: Shapes) -> int | None:
        return dimension(shapes["hada_w1_b"], 0)

    def build(self, given: Ingredients) -> Hadamard:
        return Hadamard(given)

    def factored(self, tensors: Tensors, shape: Shape) -> Factored | None:
        """(a·b) ⊙ (c·d) = Σₚ𝑞 (aₚ ⊙ c𝑞)(bₚ ⊙ d𝑞)ᵀ: a product of rank p · q."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for index in "12":
            a, b = tensors[f"hada_w{index}_a"], tensors[f"hada_w{index}_b"]
            core = tensors.get(f"hada_t{index}")
            pairs.append((a, b) if core is None else (a.T, through(core, b)))
        (a, b), (c, d) = pairs
        up, down = (a[:, :, None] * c[:, None, :]).flatten(1), (b[:, None] * d[None]).flatten(0, 1)
        return Factored(up, down).if_smaller(shape)


ALGEBRA = Loha()
