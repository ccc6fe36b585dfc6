"""Laying one tensor over another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import InputError
from loraloom.resampling import repeat_to, resize, resize_mask


def require_one_kind(first: Tensor, second: Tensor) -> None:
    """InputError unless two latents (B, C, …, h, w) differ in their number and size at most."""
    if first.shape[1:-2] == second.shape[1:-2]:
        return
    what = [
        f"{latent.shape[1]} channels" + (f" and {latent.shape[2]} frames" if latent.dim() == 5 else "")
        for latent in (first, second)
    ]
    raise InputError(
        f"the first latent has {what[0]}, the second {what[1]}: make both with the same model's VAE or "
        "sampler (most empty latents have no frames); LatentCutToBatch makes a batch of frames"
    )


def paste(
    destination: Tensor, source: Tensor, corner: tuple[int, int], mask: Tensor | None, resize_source: bool
) -> Tensor:
    """`destination` (B, C, …, H, W) with `source` over it, its upper left at corner (x, y).

    mask: (…, H', W') how much of the source shows, stretched to it; None: all. resize_source: stretch the
    source to the destination first. What reaches over the edge is cut off."""
    if resize_source:
        source = resize(source, destination.shape[-1], destination.shape[-2], "bilinear")
    source = repeat_to(source, destination.shape[0]).to(destination)
    left, top = (min(place, size) for place, size in zip(corner, destination.shape[:-3:-1], strict=True))
    if mask is None:
        shown = torch.ones_like(source[:, :1])
    else:
        stretched = resize_mask(mask, source.shape[-1], source.shape[-2])
        stretched = stretched.unflatten(0, (-1, *[1] * (source.dim() - 3)))
        shown = repeat_to(stretched, source.shape[0]).to(destination)
    height, width = destination.shape[-2] - top, destination.shape[-1] - left
    shown, source = shown[..., :height, :width], source[..., :height, :width]
    result = destination.clone()
    place = (..., slice(top, top + source.shape[-2]), slice(left, left + source.shape[-1]))
    result[place] = shown * source + (1 - shown) * result[place]
    return result


def equal_channels(destination: Tensor, source: Tensor) -> Tensor:
    """The source (B, H, W, C) with as many channels as the destination: cut, or an opaque alpha added."""
    missing = destination.shape[-1] - source.shape[-1]
    if missing > 0:
        return F.pad(source, (0, missing), value=1.0)
    return source[..., : destination.shape[-1]]
