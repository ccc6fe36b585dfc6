"""LyCORIS's sparse bias: a few entries of a bias change, stored as coordinates and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.lora.algebra import Additive, Ingredients


@dataclass(frozen=True, slots=True, eq=False)
class SparseBias(Additive):
    """The change, made dense."""

    dense: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        return self.dense.to(weight, copy=True)


def build(given: Ingredients) -> SparseBias:
    """ModelFileError where an index lies outside the bias: only the values can tell."""
    indices = given.tensors["bias_indices"].to(torch.int64)[0]
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= given.shape[0]):
        raise ModelFileError(f"a sparse bias names entry {int(indices.max())} of {given.shape[0]}")
    dense = torch.zeros(given.shape)
    dense.index_add_(0, indices, given.exact("bias_values"))
    return SparseBias(dense)
