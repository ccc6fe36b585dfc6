"""Latents of nothing, which sampling from noise alone starts from. Sizes are in pixels.

Each says how many pixels its latent pixels stand for, so that a model of another family can be given as large
a picture (`nodes.sampling.fitting`).
"""

from __future__ import annotations

from typing import Annotated

import torch

from loraloom.engine.node import Number, node
from loraloom.nodes.sockets import BatchSize, Latent, LatentValue

Side8 = Annotated[int, Number(min=16, max=16384, step=8)]
Side16 = Annotated[int, Number(min=16, max=16384, step=16)]


def empty(width: int, height: int, batch: int, channels: int, pixels: int, *frames: int) -> LatentValue:
    """(batch, channels, …frames, height / pixels, width / pixels) of zeros."""
    samples = torch.zeros(batch, channels, *frames, height // pixels, width // pixels)
    return LatentValue(samples=samples, downscale_ratio_spacial=pixels)


@node("EmptyLatentImage", category="latent", display_name="Empty Latent Image")
def empty_latent(width: Side8 = 512, height: Side8 = 512, batch_size: BatchSize = 1) -> Latent:
    """Latents of nothing, 4 channels; width and height are in pixels."""
    return empty(width, height, batch_size, 4, 8)


@node("EmptySD3LatentImage", category="latent/sd3", v3=True, python_module="comfy_extras.nodes_sd3")
def empty_sd3_latent(width: Side16 = 1024, height: Side16 = 1024, batch_size: BatchSize = 1) -> Latent:
    """Latents of nothing, 16 channels, for SD3 and Flux; width and height are in pixels."""
    return empty(width, height, batch_size, 16, 8)


@node(
    "EmptyFlux2LatentImage",
    category="latent",
    display_name="Empty Flux 2 Latent",
    v3=True,
    python_module="comfy_extras.nodes_flux",
)
def empty_flux2_latent(width: Side16 = 1024, height: Side16 = 1024, batch_size: BatchSize = 1) -> Latent:
    """Latents of nothing, 128 channels of 16×16 pixels, for Flux.2; width and height are in pixels."""
    return empty(width, height, batch_size, 128, 16)


@node(
    "EmptyQwenImageLayeredLatentImage",
    category="latent/qwen",
    display_name="Empty Qwen Image Layered Latent",
    v3=True,
    python_module="comfy_extras.nodes_qwen",
)
def empty_layered_latent(
    width: Side16 = 640,
    height: Side16 = 640,
    layers: Annotated[int, Number(min=0, max=16384, step=1)] = 3,
    batch_size: BatchSize = 1,
) -> Latent:
    """Latents of nothing with a frame for the whole picture and one for each of its layers."""
    return empty(width, height, batch_size, 16, 8, layers + 1)


@node(
    "EmptyChromaRadianceLatentImage",
    category="latent/chroma_radiance",
    v3=True,
    python_module="comfy_extras.nodes_chroma_radiance",
)
def empty_radiance_latent(width: Side16 = 1024, height: Side16 = 1024, batch_size: BatchSize = 1) -> Latent:
    """Latents of nothing for models that work on pixels: 3 channels, as large as the picture."""
    return empty(width, height, batch_size, 3, 1)
