"""The Canny node: lines where the brightness of a picture changes."""

from __future__ import annotations

from math import pi
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.engine.node import Number, node
from loraloom.errors import InputError
from loraloom.nodes.sockets import Image

Threshold = Annotated[float, Number(min=0.01, max=0.99, step=0.01)]

LUMA = (0.299, 0.587, 0.114)
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""Steps (y, x) to the eight neighbours, by the gradient's angle in turns of 45 degrees."""
MAY_TIE = (0, 2)
"""Directions whose neighbour may be as steep: of two equal pixels, the left or upper one is the edge."""


@node("Canny", category="image/preprocessors", v3=True, python_module="comfy_extras.nodes_canny")
def canny(image: Image, low_threshold: Threshold = 0.4, high_threshold: Threshold = 0.8) -> Image:
    """Draw the edges of pictures: those above the high threshold, and what continues them above the low."""
    if low_threshold > high_threshold:
        raise InputError(
            f"low_threshold {low_threshold:g} is above high_threshold {high_threshold:g}: exchange the two"
        )
    grey = (image[..., :3] * torch.tensor(LUMA).to(image)).sum(-1)
    steepness = _ridges(*_gradient(_blurred(grey[:, None])))
    edges = _continued(steepness > high_threshold, steepness > low_threshold)
    return edges.movedim(1, -1).to(image.dtype).repeat(1, 1, 1, 3)


def _blurred(grey: Tensor) -> Tensor:
    """(B, 1, H, W), with a normal distribution of deviation 1 over 5 × 5 pixels."""
    line = torch.exp(torch.arange(-2.0, 3.0) ** 2 / -2).to(grey)
    kernel = line / line.sum()
    padded = F.pad(grey, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, 1, 5)), kernel.reshape(1, 1, 5, 1))


def _gradient(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's differences along x and y."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(grey)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    both = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None])
    return both[:, :1], both[:, 1:]


def _ridges(gx: Tensor, gy: Tensor) -> Tensor:
    """The gradient's length where it is greatest along its own direction, else 0."""
    height, width = gx.shape[-2:]
    length = F.pad((gx**2 + gy**2).sqrt(), (1, 1, 1, 1))
    here = length[..., 1 : 1 + height, 1 : 1 + width]
    ahead = (torch.atan2(gy, gx) * (4 / pi)).round().long() % 8
    is_ridge = here > 0
    for turn, (y, x) in enumerate(DIRECTIONS):
        there = length[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        beats = here >= there if turn in MAY_TIE else here > there
        is_ridge &= beats | ((ahead != turn) & (ahead != (turn + 4) % 8))
    return here * is_ridge


def _continued(strong: Tensor, weak: Tensor) -> Tensor:
    """The strong pixels, and the weak ones that touch them over other weak ones."""
    while True:
        grown = (F.max_pool2d(strong.float(), 3, stride=1, padding=1) > 0) & weak
        if torch.equal(grown, strong):
            return strong
        strong = grown
