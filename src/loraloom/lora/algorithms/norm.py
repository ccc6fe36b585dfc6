"""Trained norms (LyCORIS): weight and bias of a normalisation layer gain `w_norm` and `b_norm`."""

from __future__ import annotations

from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Stored
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import misfit_of_values


class Norm(Algebra):
    """The change itself, of the layer's scale or of its bias."""

    name = "norm"
    title = "norms"
    endings = {".w_norm": "w_norm", ".b_norm": "b_norm"}
    needs = ("w_norm",)
    needs_on_bias = ("b_norm",)
    takes = "alpha gamma"
    summands = ("w_norm b_norm",)

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        return misfit_of_values(shapes["w_norm" if "w_norm" in shapes else "b_norm"], weight)

    def build(self, given: Ingredients) -> Stored:
        role = "w_norm" if "w_norm" in given.tensors else "b_norm"
        return Stored(given.tensors[role].view(given.shape))


ALGEBRA = Norm()
