"""Latents as tokens, and masks and pictures brought to the size and batch of a latent."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

PATCH = 2
"""Latent pixels per token of most transformers, in both directions."""


def one_channel(mask: Tensor, x: Tensor) -> Tensor:
    """A mask of any form (…, H', W') as (B, 1, H, W), for latents x."""
    if mask.dim() == x.dim():
        mask = mask[:, :1]
    return fit(mask.reshape(-1, 1, *mask.shape[-2:]).to(x), x)


def fit(values: Tensor, x: Tensor) -> Tensor:
    """(B', C, H', W') to the size and batch of x: the centre of the same proportions, batch by repeating."""
    height, width = x.shape[-2:]
    old_height, old_width = values.shape[-2:]
    if (old_height, old_width) != (height, width):
        left = top = 0
        if old_width * height > old_height * width:
            left = round((old_width - old_height * width / height) / 2)
        else:
            top = round((old_height - old_width * height / width) / 2)
        values = values[..., top : old_height - top, left : old_width - left]
        values = F.interpolate(values, (height, width), mode="bilinear")
    if len(values) < len(x):
        values = values.repeat(math.ceil(len(x) / len(values)), 1, 1, 1)
    return values[: len(x)]


def padded_to_patches(x: Tensor, patch: int = PATCH) -> Tensor:
    """(…, H, W) with sides that patches divide; odd sizes go on from the other side."""
    height, width = x.shape[-2:]
    if height % patch == 0 and width % patch == 0:
        return x
    more = (0, -width % patch, 0, -height % patch)
    flat = x.reshape(-1, *x.shape[-3:]) if x.dim() > 4 else x
    return F.pad(flat, more, mode="circular").reshape(*x.shape[:-2], height + more[3], width + more[1])


def pixel_tokens(picture: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H · W, C): a token for each latent pixel."""
    return picture.flatten(2).transpose(1, 2)


def of_pixel_tokens(tokens: Tensor, x: Tensor) -> Tensor:
    """The inverse of `pixel_tokens`, in the size of x."""
    return tokens.transpose(1, 2).reshape(len(x), -1, *x.shape[-2:])


def patches(x: Tensor) -> tuple[Tensor, int, int]:
    """(B, C, H, W) → (B, rows · columns, 4C) with rows and columns, channels first within a token."""
    x = padded_to_patches(x)
    batch, channels, height, width = x.shape
    rows, columns = height // PATCH, width // PATCH
    tokens = x.reshape(batch, channels, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, rows * columns, channels * PATCH**2), rows, columns


def unpatched(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `patches`, before the cut to the original size."""
    batch, _, width = tokens.shape
    channels = width // PATCH**2
    x = tokens.reshape(batch, rows, columns, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, channels, rows * PATCH, columns * PATCH)


def unpatched_channels_last(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """As `unpatched`, for tokens whose channels come last."""
    batch, _, width = tokens.shape
    x = tokens.reshape(batch, rows, columns, PATCH, PATCH, width // PATCH**2).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, -1, rows * PATCH, columns * PATCH)
