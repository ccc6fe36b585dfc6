"""LoKr: ΔW = γ · w1 ⊗ w2 (Kronecker), each factor whole or low-rank, w2 optionally through a Tucker core.

LyCORIS (arXiv:2309.14859). γ is 1 where both factors are whole, whatever alpha says: the trainer fixes it so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Shapes, Tensors
from loraloom.lora.changes import Additive, Nothing
from loraloom.lora.component import Shape
from loraloom.lora.factored import Factored, lycoris_product, through
from loraloom.lora.shape_check import dimension, matrix_product, misfit_of_matrix, said

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker(Additive):
    """The Kronecker product of a small matrix and a larger one that carries the kernel."""

    given: Ingredients

    def delta(self, weight: Tensor) -> Tensor:
        import torch

        first, second = self._first(weight), self._second(weight)
        return torch.kron(first, second).mul_(self.given.gamma).view(self.given.shape)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        """A Kronecker product's norm is the product of the norms."""
        first, second = self._first(None), self._second(None)
        return abs(self.given.gamma) * float(first.norm()) * float(second.norm())

    def _first(self, like: Tensor | None) -> Tensor:
        if "lokr_w1" in self.given.tensors:
            return self.given.exact("lokr_w1", like)
        return self.given.exact("lokr_w1_a", like) @ self.given.exact("lokr_w1_b", like)

    def _second(self, like: Tensor | None) -> Tensor:
        """w2, its kernel flattened into its columns."""
        given = self.given
        if "lokr_w2" in given.tensors:
            return given.matrix("lokr_w2", like)
        if "lokr_t2" not in given.tensors:
            return given.exact("lokr_w2_a", like) @ given.matrix("lokr_w2_b", like)
        core, a, b = (given.exact(role, like) for role in ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
        return lycoris_product(core, a, b)


class Lokr(Algebra):
    """A first factor (p, q) and a second (out / p, in / q · kernel)."""

    name = "lokr"
    title = "LoKr"
    endings = {
        ".lokr_w1": "lokr_w1",
        ".lokr_w1_a": "lokr_w1_a",
        ".lokr_w1_b": "lokr_w1_b",
        ".lokr_w2": "lokr_w2",
        ".lokr_w2_a": "lokr_w2_a",
        ".lokr_w2_b": "lokr_w2_b",
        ".lokr_t2": "lokr_t2",
    }
    needs = (
        "lokr_w1 lokr_w2",
        "lokr_w1 lokr_w2_a lokr_w2_b",
        "lokr_w1_a lokr_w1_b lokr_w2",
        "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
    )
    takes = "lokr_t2 alpha gamma"
    summands = ("lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2",)
    peft = tuple(ending.removeprefix(".") for ending in endings)
    scaled = True
    wrapped = True

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        parts = [shapes[role] for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b") if role in shapes]
        first = parts[0] if "lokr_w1" in shapes else matrix_product(*parts)
        if first is None or any(len(part) != 2 for part in parts):
            return "its first Kronecker factor is no matrix"
        core = shapes.get("lokr_t2")
        if "lokr_w2" in shapes:
            stored = shapes["lokr_w2"]
            second = (stored[0], prod(stored[1:])) if len(stored) > 1 else None
        elif core is not None:
            a, b = shapes["lokr_w2_a"], shapes["lokr_w2_b"]
            if len(core) < 3 or len(a) != 2 or len(b) != 2 or a[0] != core[0] or b[0] != core[1]:
                return f"its core {said(core)} does not join {said(a)} and {said(b)}"
            second = (a[1], b[1] * prod(core[2:]))
        else:
            second = matrix_product(shapes["lokr_w2_a"], shapes["lokr_w2_b"])
        if second is None:
            return "its second Kronecker factor is no matrix"
        return misfit_of_matrix((first[0] * second[0], first[1] * second[1]), weight)

    def rank(self, shapes: Shapes) -> int | None:
        factor = next((role for role in ("lokr_w2_b", "lokr_w1_b") if role in shapes), None)
        return dimension(shapes[factor], 0) if factor else None

    def build(self, given: Ingredients) -> Kronecker | Nothing:
        if given.comfyui and "lokr_t2" in given.tensors:
            return Nothing()  # ComfyUI v0.3.64 fails on these and goes on without them
        return Kronecker(given)

    def factored(self, tensors: Tensors, shape: Shape) -> Factored | None:
        """w1 ⊗ (x·y) = (w1 ⊗ x)(1 ⊗ y): a product of w1's columns times the rank of w2."""
        import torch

        if "lokr_w2" in tensors:
            return None  # nearly always of full rank
        core = tensors.get("lokr_t2")
        x, y = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
        x, y = (x, y.flatten(1)) if core is None else (x.T, through(core, y))
        if "lokr_w1" in tensors:
            left = tensors["lokr_w1"]
            right = torch.eye(left.shape[1])
        else:
            left, right = tensors["lokr_w1_a"], tensors["lokr_w1_b"]
        up, down = torch.kron(left, x.contiguous()), torch.kron(right, y.contiguous())
        return Factored(up, down).if_smaller(shape)


ALGEBRA = Lokr()
