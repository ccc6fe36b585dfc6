"""ConvRot: groups of input columns turned by a Hadamard matrix before a weight is rounded.

H4 has rows (1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1); H of g = 4^m is its Kronecker power
divided by √g. It is symmetric and its own inverse: stored = W · H, W = stored · H, and x · Wᵀ =
(x · H) · storedᵀ.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GROUP = 256
"""Columns in a group where a file does not say."""

LARGEST = 4**8


def check_group(group: int, columns: int) -> int:
    """A group's size; ModelFileError unless it is a power of 4 that divides the columns."""
    if group not in {4**power for power in range(1, 9)}:
        raise ModelFileError(f"its convrot_groupsize is {group}; a power of 4 was expected")
    if columns % group:
        raise ModelFileError(f"its {columns} columns are no multiple of its convrot_groupsize {group}")
    return group


@lru_cache(maxsize=32)
def hadamard(group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H (g, g)."""
    import torch

    four = 1 - 2 * torch.eye(4, dtype=dtype).flip(1)
    found = torch.ones(1, 1, dtype=dtype)
    while len(found) < group:
        found = torch.kron(found, four)
    return (found / group**0.5).to(device)


def rotated(values: Tensor, group: int) -> Tensor:
    """values (…, columns) with every group of columns turned."""
    matrix = hadamard(group, values.dtype, values.device)
    return (values.unflatten(-1, (-1, group)) @ matrix).flatten(-2)
