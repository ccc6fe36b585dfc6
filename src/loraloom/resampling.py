"""Resizing as ComfyUI does it, value for value: tensors are (B, C, H, W), latents also (B, C, F, H, W)."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import InputError

IMAGE_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
LATENT_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
CROPS = ("disabled", "center")


def resize(samples: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """Resize to width × height; with `crop` "center" the excess of the longer side is cut off first.

    Raises InputError for a size without pixels."""
    if width < 1 or height < 1:
        raise InputError(f"cannot resize to {width}×{height} pixels: both sides need at least one")
    if samples.dim() == 5:
        frames = samples.movedim(2, 1)
        resized = resize(frames.flatten(0, 1), width, height, method, crop)
        return resized.unflatten(0, frames.shape[:2]).movedim(1, 2)
    if crop == "center":
        samples = _centre(samples, width, height)
    if method == "bislerp":
        return bislerp(samples, width, height)
    if method == "lanczos":
        return lanczos(samples, width, height)
    return F.interpolate(samples, size=(height, width), mode=method)


def resize_image(image: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """`resize` for pictures (B, H, W, C)."""
    return resize(image.movedim(-1, 1), width, height, method, crop).movedim(1, -1)


def resize_mask(mask: Tensor, width: int, height: int) -> Tensor:
    """Masks (…, H, W) → (B, height, width), bilinear."""
    return F.interpolate(as_batch(mask)[:, None], size=(height, width), mode="bilinear")[:, 0]


def as_batch(mask: Tensor) -> Tensor:
    """Masks of any number of dimensions as (B, H, W)."""
    return mask.reshape(-1, *mask.shape[-2:])


def repeat_to(tensor: Tensor, batch: int) -> Tensor:
    """The tensor with `batch` entries: cut, or repeated from its start."""
    times = math.ceil(batch / tensor.shape[0])
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))[:batch] if times > 1 else tensor[:batch]


def lanczos(samples: Tensor, width: int, height: int) -> Tensor:
    """Pillow's Lanczos filter on 8-bit pictures of one to four channels."""
    resized: list[Tensor] = []
    for sample in samples:
        pixels = (sample.movedim(0, -1).float() * 255.0).clamp(0, 255).to(torch.uint8).cpu().numpy()
        picture = PillowImage.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture = picture.resize((width, height), PillowImage.Resampling.LANCZOS)
        array = np.asarray(picture, dtype=np.float32).reshape(height, width, -1) / 255.0
        resized.append(torch.from_numpy(array).movedim(-1, 0))
    return torch.stack(resized).to(samples)


def bislerp(samples: Tensor, width: int, height: int) -> Tensor:
    """Spherical interpolation between neighbours, along the width and then along the height: it keeps the
    norms of latents where linear interpolation shrinks them."""
    across = _slerp_last(samples.float(), width)
    return _slerp_last(across.transpose(2, 3), height).transpose(2, 3).contiguous().to(samples.dtype)


def _slerp_last(samples: Tensor, length: int) -> Tensor:
    old = samples.shape[-1]
    places = torch.arange(old, dtype=torch.float32, device=samples.device)
    at = _stretched(places, length)
    after = _stretched((places + 1).clamp(max=old - 1), length)
    return _slerp(samples[..., at.long()], samples[..., after.long()], at - at.floor())


def _stretched(line: Tensor, length: int) -> Tensor:
    return F.interpolate(line[None, None, None], size=(1, length), mode="bilinear")[0, 0, 0]


def _slerp(a: Tensor, b: Tensor, ratio: Tensor) -> Tensor:
    """Between vectors along dimension 1; where they have one direction, or opposite ones, a or a line."""
    norm_a, norm_b = (torch.linalg.vector_norm(t, dim=1, keepdim=True) for t in (a, b))
    unit_a, unit_b = ((t / n).masked_fill(n == 0, 0.0) for t, n in ((a, norm_a), (b, norm_b)))
    dot = (unit_a * unit_b).sum(1, keepdim=True)
    angle = torch.acos(dot)
    mixed = (torch.sin((1 - ratio) * angle) * unit_a + torch.sin(ratio * angle) * unit_b) / torch.sin(angle)
    mixed = mixed * (norm_a * (1 - ratio) + norm_b * ratio)
    mixed = torch.where(dot > 1 - 1e-5, a, mixed)
    return torch.where(dot < 1e-5 - 1, a * (1 - ratio) + b * ratio, mixed)


def _centre(samples: Tensor, width: int, height: int) -> Tensor:
    old_height, old_width = samples.shape[-2:]
    old, new = old_width / old_height, width / height
    x = round((old_width - old_width * (new / old)) / 2) if old > new else 0
    y = round((old_height - old_height * (old / new)) / 2) if old < new else 0
    return samples[..., y : old_height - y, x : old_width - x]
