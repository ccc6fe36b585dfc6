"""Convolutions of 3×3 with a quarter of the products, in float32 (Winograd's form F(4×4, 3×3)).

A tile of 6×6 numbers and a kernel are taken to values of polynomials at six points in each direction, where
a convolution is 36 products instead of 144 for the tile's 4×4 results (Lavin & Gray 2016,
https://arxiv.org/abs/1509.09308). The products of all channels are matrix products. The points are 0, ±3/4,
±3/2 and infinity: with them results are about as exact as a convolution's own sums, half as far off as with
the usual 0, ±1, ±2 (measured; Barabasz et al. 2018, https://arxiv.org/abs/1803.10986, say why).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Beside infinity."""

TILE, TAPS = 4, 3
WIDE = TILE + TAPS - 1

CHANNELS, PIXELS = 192, 1024
"""From how many channels on both sides, and how many pixels of a picture, it is faster than a convolution
(docs/performance.md): fewer channels do not pay for taking tiles there and back, fewer pixels not for taking
the kernel there, for the two pictures that guidance evaluates."""

TOGETHER = 128
"""Tiles that are multiplied at once: enough for a fast product, few enough to stay near the processor."""


def saves(input: Tensor, out_channels: int) -> bool:
    """Whether a convolution of 3×3 of each pixel and its neighbours is faster so."""
    channels, height, width = input.shape[1:]
    fits = input.dtype == torch.float32 and height % TILE == 0 and width % TILE == 0
    return fits and min(channels, out_channels) >= CHANNELS and height * width >= PIXELS


def convolved(input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """(B, in, H, W), H and W multiples of 4, and (out, in, 3, 3) → (B, out, H, W), with the channels last."""
    batch, channels, height, width = input.shape
    there, kernel_there, back = _transforms()
    taken = (kernel_there @ kernel.permute(2, 3, 1, 0).reshape(TAPS**2, -1)).view(WIDE**2, channels, -1)
    outputs, across = taken.shape[2], width // TILE
    down = _strip(height // TILE, across)
    tiles = down * across
    made = input.new_empty(batch, height, width, outputs)
    padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    cut = input.new_empty(WIDE, WIDE, down, across, channels)
    values = input.new_empty(WIDE**2, tiles, channels)
    products = input.new_empty(WIDE**2, tiles, outputs)
    results = input.new_empty(TILE, TILE, down, across, outputs)
    for picture, result in zip(padded, made, strict=True):
        for top in range(0, height, TILE * down):
            strip = picture[top : top + TILE * down + TAPS - 1]
            cut.copy_(strip.unfold(0, WIDE, TILE).unfold(1, WIDE, TILE).permute(3, 4, 0, 1, 2))
            torch.mm(there, cut.view(WIDE**2, -1), out=values.view(WIDE**2, -1))
            torch.bmm(values, taken, out=products)
            torch.mm(back, products.view(WIDE**2, -1), out=results.view(TILE**2, -1))
            place = result[top : top + TILE * down].view(down, TILE, across, TILE, outputs)
            place.copy_(results.permute(2, 0, 3, 1, 4))
    if bias is not None:
        made.add_(bias)
    return made.permute(0, 3, 1, 2)


def _strip(rows: int, across: int) -> int:
    """Rows of tiles that are multiplied at once: a part of all, without a rest."""
    wanted = min(rows, -(-TOGETHER // across))
    return next(count for count in range(wanted, rows + 1) if rows % count == 0)


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """What takes a tile's 36 numbers and a kernel's 9 to the points, and 36 products back to 16 results.

    Polynomials are multiplied by their values at points: that, transposed, is a convolution of a tile."""
    to_points = torch.linalg.inv(_powers(WIDE)).T.contiguous()
    one_way = (to_points, _powers(TAPS), _powers(TILE).T.contiguous())
    tile, kernel, back = (torch.kron(matrix, matrix).float() for matrix in one_way)
    return tile, kernel, back


def _powers(count: int) -> Tensor:
    """(6, count): the powers of each point; of infinity, the highest alone counts."""
    finite = torch.tensor(POINTS, dtype=torch.float64)[:, None] ** torch.arange(count)
    infinity = torch.zeros(1, count, dtype=torch.float64)
    infinity[0, -1] = 1
    return torch.cat([finite, infinity])
