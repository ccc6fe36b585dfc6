"""Full differences: ΔW is stored as it is (`diff`), of a bias too (`diff_b`). There is no alpha."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Stored
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import dimension, misfit_of_values


class Full(Algebra):
    """One tensor of the weight's shape."""

    name = "full"
    title = "whole differences"
    endings = {".diff": "diff", ".diff_b": "diff_b"}
    needs = ("diff",)
    needs_on_bias = ("diff_b",)
    takes = "alpha gamma"
    summands = ("diff diff_b",)

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        return misfit_of_values(shapes["diff_b" if "diff_b" in shapes else "diff"], weight)

    def inputs(self, shapes: Shapes) -> int | None:
        return dimension(shapes["diff"], -1) if "diff" in shapes else None

    def build(self, given: Ingredients) -> Stored:
        role = "diff_b" if "diff_b" in given.tensors else "diff"
        return Stored(given.tensors[role].view(given.shape))

    def of_difference(self, delta: Tensor, *, on_bias: bool) -> dict[str, Tensor]:
        """A difference as the tensors of a module."""
        return {"diff_b" if on_bias else "diff": delta}


ALGEBRA = Full()
