"""Nodes between pictures and latents beyond the plain ones: with holes to fill, and in tiles."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch.nn import functional as F

from loraloom.engine.node import NodeRun, Number, node
from loraloom.nodes.autoencoding import encoded, tell_foreign
from loraloom.nodes.sockets import Image, Latent, Mask, Vae
from loraloom.resampling import resize_mask
from loraloom.runtime.services import services

Overlap = Annotated[int, Number(min=0, max=4096, step=32)]
Frames = Annotated[int, Number(min=8, max=4096, step=4)]
FrameOverlap = Annotated[int, Number(min=4, max=4096, step=4)]


@node("VAEEncodeForInpaint", category="latent/inpaint", display_name="VAE Encode (for Inpainting)")
def encode_for_inpainting(
    pixels: Image,
    vae: Vae,
    mask: Mask,
    grow_mask_by: Annotated[int, Number(min=0, max=64, step=1)] = 6,
    *,
    run: NodeRun,
) -> Latent:
    """Turn pictures into latents with grey where the mask is white, and let a sampler fill that part."""
    network = services(run).memory.autoencoder(vae)
    step = network.downscale
    hole = resize_mask(mask, pixels.shape[2], pixels.shape[1]).round()
    height, width = (side // step * step for side in pixels.shape[1:3])
    top, left = (side % step // 2 for side in pixels.shape[1:3])
    pixels = pixels[:, top : top + height, left : left + width, :3]
    hole = hole[:, top : top + height, left : left + width]
    grey = (pixels - 0.5) * (1.0 - hole)[..., None] + 0.5
    if grow_mask_by:
        kernel = torch.ones(1, 1, grow_mask_by, grow_mask_by)
        grown = F.conv2d(hole[:, None], kernel, padding=math.ceil((grow_mask_by - 1) / 2))
        hole = grown[:, 0, :height, :width].clamp(0, 1).round()
    return {**encoded(network.encode(grey), vae), "noise_mask": hole}


@node("VAEDecodeTiled", category="_for_testing", display_name="VAE Decode (Tiled)")
def decode_tiled(
    samples: Latent,
    vae: Vae,
    tile_size: Annotated[int, Number(min=64, max=4096, step=32)] = 512,
    overlap: Overlap = 64,
    temporal_size: Frames = 64,
    temporal_overlap: FrameOverlap = 8,
    *,
    run: NodeRun,
) -> Image:
    """Turn latents into pictures tile by tile, for pictures that do not fit in memory whole."""
    del temporal_size, temporal_overlap  # for videos
    tell_foreign(samples, vae, run)
    network = services(run).memory.autoencoder(vae)
    return network.decode_tiled(samples["samples"], tile_size, _at_most_a_quarter(overlap, tile_size))


@node("VAEEncodeTiled", category="_for_testing", display_name="VAE Encode (Tiled)")
def encode_tiled(
    pixels: Image,
    vae: Vae,
    tile_size: Annotated[int, Number(min=64, max=4096, step=64)] = 512,
    overlap: Overlap = 64,
    temporal_size: Frames = 64,
    temporal_overlap: FrameOverlap = 8,
    *,
    run: NodeRun,
) -> Latent:
    """Turn pictures into latents tile by tile, for pictures that do not fit in memory whole."""
    del temporal_size, temporal_overlap  # for videos
    network = services(run).memory.autoencoder(vae)
    return encoded(network.encode_tiled(pixels, tile_size, _at_most_a_quarter(overlap, tile_size)), vae)


def _at_most_a_quarter(overlap: int, tile: int) -> int:
    return tile // 4 if tile < overlap * 4 else overlap
