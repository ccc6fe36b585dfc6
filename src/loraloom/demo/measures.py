"""How good a drawn picture is, in numbers: what the benchmark of the demo model prints and its tests hold.

A picture is an array (H, W, 3) of values 0…255.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float64]
LEVELS = 8
"""How far a value of the border may be from the background's."""
FRAME = 8
"""Width of the border in pixels: one latent cell."""


def edge_energy(picture: Pixels) -> float:
    """Mean difference between neighbours, over both directions and all channels: blur lowers it."""
    return float(sum(np.abs(np.diff(picture, axis=axis)).mean() for axis in (0, 1)))


def clean_border(picture: Pixels) -> float:
    """Share of the outermost `FRAME` pixels of all sides that are within `LEVELS` of their median colour."""
    inside = np.zeros(picture.shape[:2], bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    border = picture[~inside]
    return float((np.abs(border - np.median(border, axis=0)).max(-1) <= LEVELS).mean())


def psnr(picture: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures of one size, in dB; 100 where they are the same."""
    error = float(np.square(picture - other).mean())
    return min(100.0, 10.0 * float(np.log10(255.0**2 / error))) if error else 100.0


def on_grid(picture: Pixels, cell: int) -> float:
    """Share of the edge energy that lies between cells of `cell` pixels: 1 for hard square pixels, about
    1 / `cell` for a picture that knows no grid."""
    found = total = 0.0
    for axis in (0, 1):
        steps = np.abs(np.diff(picture, axis=axis)).sum(-1).sum(1 - axis)
        found += float(steps[cell - 1 :: cell].sum())
        total += float(steps.sum())
    return found / total if total else 1.0


def grey(picture: Pixels) -> float:
    """1 - mean of (largest - least value) / 255: 1 for a picture without any colour."""
    return 1.0 - float((picture.max(-1) - picture.min(-1)).mean()) / 255.0
