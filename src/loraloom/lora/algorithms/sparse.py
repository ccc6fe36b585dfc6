"""LyCORIS's sparse bias: a few entries of a bias change, stored as coordinates and values."""

from __future__ import annotations

from loraloom.errors import ModelFileError
from loraloom.lora.algebra import Algebra, Ingredients, Shapes
from loraloom.lora.changes import Stored
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import said


class SparseBias(Algebra):
    """Indices (1, n) and values (n)."""

    name = "sparse"
    title = "sparse bias"
    endings = {".bias_indices": "bias_indices", ".bias_values": "bias_values", ".bias_size": "bias_size"}
    needs_on_bias = ("bias_indices bias_values bias_size",)
    takes = "alpha"
    summands = ("bias_values",)
    in_comfyui = False

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        indices, values = shapes["bias_indices"], shapes["bias_values"]
        if len(indices) != 2 or len(values) != 1 or indices[1] != values[0]:
            return f"{said(values)} values for indices {said(indices)}"
        if not 1 <= indices[0] <= 2:
            return f"indices of {indices[0]} dimensions into a bias of {said(weight)}"
        if len(weight) != 1:
            return f"made for a bias, this is {said(weight)}"
        return None

    def build(self, given: Ingredients) -> Stored:
        """ModelFileError where an index lies outside the bias: only the values can tell."""
        import torch

        indices = given.tensors["bias_indices"].to(torch.int64)[0]
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= given.shape[0]):
            raise ModelFileError(f"a sparse bias names entry {int(indices.max())} of {given.shape[0]}")
        dense = torch.zeros(given.shape)
        dense.index_add_(0, indices, given.exact("bias_values"))
        return Stored(dense)


ALGEBRA = SparseBias()
