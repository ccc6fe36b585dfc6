"""Positions as rotations of pairs of channels (Su et al. 2021), each axis turning channels of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THETA = 10000.0


def rotations(places: Tensor, widths: Sequence[int]) -> Tensor:
    """(tokens, axes) → (tokens, sum(widths) / 2) complex numbers. widths: channels of each axis."""
    turned: list[Tensor] = []
    for axis, width in enumerate(widths):
        frequencies = 1 / THETA ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = (places[:, axis, None].double() * frequencies).float()
        turned.append(torch.polar(torch.ones_like(angles), angles))
    return torch.cat(turned, dim=1)
