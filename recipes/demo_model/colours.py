"""The colours of the latents: factors that turn one into a rough picture without the decoder."""

from __future__ import annotations

import json
from typing import cast

import torch
from autoencoder import SCALE
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.latent_format import COLOURS


@torch.no_grad()
def fitted(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Channels and a bias → red, green and blue in [-1, 1], (C + 1) × 3: the least squares of what the
    decoder makes of latents, N × C × h × w as the encoder gives them, with 8×8 pixels taken together."""
    vae = vae.float().cpu().eval()
    parts = [cast("torch.FloatTensor", part) for part in latents.float().cpu().split(8)]
    pixels = torch.cat([vae.decode(part, return_dict=False)[0] for part in parts])
    sides = latents.shape[-2:]
    wanted = F.adaptive_avg_pool2d(pixels, (sides[0], sides[1])).movedim(1, -1).reshape(-1, 3)
    seen = (latents.float().cpu() * SCALE).movedim(1, -1).flatten(0, -2)
    return torch.linalg.lstsq(torch.cat([seen, torch.ones_like(seen[:, :1])], 1), wanted).solution


def stated(colours: Tensor) -> dict[str, str]:
    """The metadata that say so."""
    return {COLOURS: json.dumps([[round(value, 4) for value in row] for row in colours.tolist()])}
