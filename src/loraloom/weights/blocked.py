"""Scales of blocks of columns in the order that cuBLAS wants: tiles of 128 rows and 4 blocks, row r of a tile
at [r mod 32][r div 32] (https://docs.nvidia.com/cuda/cublas/index.html#d-block-scaling-factors-layout)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def tiled_shape(rows: int, blocks: int) -> tuple[int, int]:
    """What (rows, blocks) is filled up to."""
    return -(-rows // 128) * 128, -(-blocks // 4) * 4


def untiled(scales: Tensor, rows: int, blocks: int) -> Tensor:
    """Tiled scales, as they lie in memory → (rows, blocks)."""
    height, width = tiled_shape(rows, blocks)
    tiles = scales.reshape(height // 128, width // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height, width)[:rows, :blocks].contiguous()


def tiled(scales: Tensor) -> Tensor:
    """(rows, blocks) → tiled, filled up with zeros, in its filled-up shape."""
    rows, blocks = scales.shape
    height, width = tiled_shape(rows, blocks)
    whole = scales.new_zeros(height, width)
    whole[:rows, :blocks] = scales
    return whole.reshape(height // 128, 4, 32, width // 4, 4).permute(0, 3, 2, 1, 4).reshape(height, width)
