"""Running a network on overlapping tiles of a picture, for pictures that do not fit in memory whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_tiles(
    function: Callable[[Tensor], Tensor], samples: Tensor, tile: tuple[int, int], overlap: int, scale: float
) -> Tensor:
    """`function` applied to overlapping tiles (height, width) of samples, blended over the overlap.

    scale: size of the function's output relative to its input."""
    return torch.cat([_one_in_tiles(function, one, tile, overlap, scale) for one in samples.split(1)])


def _one_in_tiles(
    function: Callable[[Tensor], Tensor], one: Tensor, tile: tuple[int, int], overlap: int, scale: float
) -> Tensor:
    size = tuple(one.shape[-2:])
    if size[0] <= tile[0] and size[1] <= tile[1]:
        return function(one)
    total = weight = torch.empty(0)
    for top in _tile_starts(size[0], tile[0], overlap):
        for left in _tile_starts(size[1], tile[1], overlap):
            part = function(one[..., top : top + tile[0], left : left + tile[1]])
            mask = _feathered(part, round(overlap * scale))
            if not total.numel():
                shape = (*part.shape[:2], *(round(s * scale) for s in size))
                total, weight = part.new_zeros(shape), part.new_zeros(shape)
            y, x = round(top * scale), round(left * scale)
            place = (..., slice(y, y + part.shape[-2]), slice(x, x + part.shape[-1]))
            total[place] += part * mask
            weight[place] += mask
    return total / weight


def _tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    return [max(0, min(size - overlap, start)) for start in range(0, size - overlap, tile - overlap)]


def _feathered(part: Tensor, feather: int) -> Tensor:
    """Ones like `part` that rise over `feather` pixels from each edge."""
    mask = torch.ones_like(part)
    for dimension in (-2, -1):
        if 0 < feather < part.shape[dimension]:
            ramp = torch.ones(part.shape[dimension], device=part.device, dtype=part.dtype)
            steps = torch.arange(1, feather + 1, device=part.device, dtype=part.dtype) / feather
            ramp[:feather] *= steps
            ramp[-feather:] *= steps.flip(0)
            mask *= ramp[:, None] if dimension == -2 else ramp
    return mask
