"""Nodes that change the colours of pictures (B, H, W, C)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional as F

from loraloom.engine.node import Choice, Number, node
from loraloom.nodes.composition import equal_channels
from loraloom.nodes.sockets import Image
from loraloom.resampling import resize_image

EXTRA = "comfy_extras.nodes_post_processing"
CATEGORY = "image/postprocessing"
Radius = Annotated[int, Number(min=1, max=31, step=1)]


def _overlay(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a <= 0.5, 2 * a * b, 1 - 2 * (1 - a) * (1 - b))


def _soft_light(a: Tensor, b: Tensor) -> Tensor:
    """The blend mode of the W3C compositing specification."""
    curve = torch.where(a <= 0.25, ((16 * a - 12) * a + 4) * a, a.sqrt())
    return torch.where(b <= 0.5, a - (1 - 2 * b) * a * (1 - a), a + (2 * b - 1) * (curve - a))


BLENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": lambda a, b: b,
    "multiply": lambda a, b: a * b,
    "screen": lambda a, b: 1 - (1 - a) * (1 - b),
    "overlay": _overlay,
    "soft_light": _soft_light,
    "difference": lambda a, b: a - b,
}


@node("ImageBlend", category=CATEGORY, v3=True, python_module=EXTRA)
def blend_images(
    *,
    image1: Image,
    image2: Image,
    blend_factor: Annotated[float, Number(min=0.0, max=1.0, step=0.01)] = 0.5,
    blend_mode: Annotated[str, Choice(tuple(BLENDS))],
) -> Image:
    """Blend the second picture into the first."""
    image2 = equal_channels(image1, image2)
    if image1.shape != image2.shape:
        image2 = resize_image(image2, image1.shape[2], image1.shape[1], "bicubic", "center")
    blended = BLENDS[blend_mode](image1, image2)
    return (image1 * (1 - blend_factor) + blended * blend_factor).clamp(0, 1)


@node("ImageBlur", category=CATEGORY, v3=True, python_module=EXTRA)
def blur_image(
    image: Image,
    blur_radius: Radius = 1,
    sigma: Annotated[float, Number(min=0.1, max=10.0, step=0.1)] = 1.0,
) -> Image:
    """Blur pictures; sigma is relative to the radius."""
    return _filtered(image, _gaussian(blur_radius, sigma))


@node("ImageSharpen", category=CATEGORY, v3=True, python_module=EXTRA)
def sharpen_image(
    image: Image,
    sharpen_radius: Radius = 1,
    sigma: Annotated[float, Number(min=0.1, max=10.0, step=0.01)] = 1.0,
    alpha: Annotated[float, Number(min=0.0, max=5.0, step=0.01)] = 1.0,
) -> Image:
    """Sharpen pictures by ten times `alpha` of the difference to their blurred selves."""
    kernel = _gaussian(sharpen_radius, sigma) * (-10 * alpha)
    kernel[sharpen_radius, sharpen_radius] += 1.0 - kernel.sum()
    return _filtered(image, kernel).clamp(0, 1)


@node("ImageQuantize", category=CATEGORY, v3=True, python_module=EXTRA)
def quantize_image(
    *,
    image: Image,
    colors: Annotated[int, Number(min=1, max=256, step=1)] = 256,
    dither: Annotated[str, Choice(("none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"))],
) -> Image:
    """Reduce pictures to some colours, chosen for each picture."""
    return torch.stack([_quantized(one, colors, dither) for one in image[..., :3]])


def _gaussian(radius: int, sigma: float) -> Tensor:
    """(2r + 1, 2r + 1) weights of sum 1; the corner lies at (1, 1)."""
    line = torch.linspace(-1, 1, radius * 2 + 1)
    kernel = torch.exp(-(line[:, None].square() + line.square()) / (2.0 * sigma * sigma))
    return kernel / kernel.sum()


def _filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Each channel convolved with the kernel, the picture mirrored at its edges."""
    radius, channels = len(kernel) // 2, image.shape[3]
    padded = F.pad(image.movedim(-1, 1), (radius,) * 4, "reflect")
    weight = kernel.to(image).expand(channels, 1, -1, -1)
    return F.conv2d(padded, weight, groups=channels).movedim(1, -1)


def _quantized(image: Tensor, colours: int, dither: str) -> Tensor:
    picture = PillowImage.fromarray((image * 255).to(torch.uint8).cpu().numpy())
    palette = picture.quantize(colors=colours)
    method = PillowImage.Dither.NONE
    if dither == "floyd-steinberg":
        method = PillowImage.Dither.FLOYDSTEINBERG
    elif dither.startswith("bayer"):
        picture = _bayer(picture, len(palette.getpalette() or []) // 3, int(dither.split("-")[1]))
    reduced = picture.quantize(palette=palette, dither=method).convert("RGB")
    return torch.from_numpy(np.array(reduced)).float() / 255


def _bayer(picture: PillowImage.Image, colours: int, order: int) -> PillowImage.Image:
    """The picture with an ordered pattern added, as strong as the palette's colours are far apart."""
    pattern = np.zeros((1, 1))
    for step in range(1, int(math.log2(order)) + 1):
        scaled = pattern * 4**step
        blocks = [[scaled - 1.5, scaled + 0.5], [scaled + 1.5, scaled - 0.5]]
        pattern = np.block(blocks) / 4**step
    pattern = (512 / max(colours, 1) * pattern + 0.5).astype(np.float32)
    pixels = np.asarray(picture, dtype=np.float32)
    tiles = [math.ceil(side / len(pattern)) for side in pixels.shape[:2]]
    shifted = pixels + np.tile(pattern, tiles)[: pixels.shape[0], : pixels.shape[1], None]
    return PillowImage.fromarray(shifted.clip(0, 255).astype(np.uint8))
