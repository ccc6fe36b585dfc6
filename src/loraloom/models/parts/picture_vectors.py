"""What pictures are about, as vectors beside a prompt: Stable unCLIP, SDXL Revision (Ramesh et al. 2022).

A picture's embedding is made noisy as a latent would be, and the network is told how noisy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.sampling.noise import generator
from loraloom.sampling.types import Cond

PICTURES = "unclip_conditioning"
"""The option of a conditioning that holds pictures: mappings with "clip_vision_output" (whose image_embeds
are (B, D)), "strength", and "noise_augmentation" in 0…1."""

LEVELS = 1000
SEED_SHIFT = -10
"""From a run's seed to that of this noise, as ComfyUI has it."""


def picture_vector(cond: Cond, width: int, seed: int, merged_noise: float = 0.0) -> Tensor | None:
    """(1, 2 · width): the sum of the pictures' embeddings, then how noisy it is; None where there are none.

    merged_noise: of the sum of several. InputError where the encoder was another one."""
    pictures = cast("Sequence[Mapping[str, Any]]", cond.options.get(PICTURES) or ())
    found: list[Tensor] = []
    for picture in pictures:
        for embedding in cast(Tensor, picture["clip_vision_output"].image_embeds).float():
            if embedding.shape != (width,):
                raise InputError(
                    f"the picture encoder's embeddings are {embedding.shape[-1]} wide and this model reads "
                    f"{width}: it goes with another one (768: CLIP ViT-L, 1024: ViT-H, 1280: ViT-bigG)"
                )
            noisy = _noisy(embedding[None], cast(float, picture["noise_augmentation"]), seed)
            found.append(noisy * cast(float, picture["strength"]))
    if len(found) < 2:
        return found[0] if found else None
    return _noisy(torch.stack(found).sum(0)[:, :width], merged_noise, seed)


def _noisy(embedding: Tensor, amount: float, seed: int) -> Tensor:
    level = round((LEVELS - 1) * amount)
    kept = _kept()[level]
    noise = torch.randn(embedding.shape, generator=generator(seed + SEED_SHIFT))
    mixed = kept.sqrt() * embedding + (1 - kept).sqrt() * noise
    return torch.cat([mixed.float(), embed_number(level, embedding.shape[-1])[None]], dim=1)


@cache
def _kept() -> Tensor:
    """(1000,) how much of the square is left at each level: the cosine schedule of Nichol & Dhariwal 2021."""

    def left(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = [min(1 - left((i + 1) / LEVELS) / left(i / LEVELS), 0.999) for i in range(LEVELS)]
    return (1 - torch.tensor(steps, dtype=torch.float64)).cumprod(0)


def embed_number(number: float, width: int) -> Tensor:
    """(width,) cosines, then sines, of a number at geometric frequencies from 1 to 1/10000."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float32) / (width // 2))
    angles = torch.tensor(number, dtype=torch.float32) * frequencies
    return torch.cat([angles.cos(), angles.sin()])
