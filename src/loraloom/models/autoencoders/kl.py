"""The KL autoencoder of Stable Diffusion, SDXL, SD3 and Flux.1 (Rombach et al. 2022)."""

from __future__ import annotations

from typing import cast

from loraloom.models.autoencoder import AutoencoderKind, halvings, number
from loraloom.models.known_model import Module
from loraloom.models.parts.kl_layout import KL_MARKS, KlNames, kl_config

AUTOENCODER = AutoencoderKind(
    name="kl",
    title="KL autoencoder",
    marks=KL_MARKS,
    module=Module("diffusers.models.autoencoders.autoencoder_kl:AutoencoderKL", kl_config),
    names=KlNames(),
    latent_channels=number("latent_channels"),
    pixels=halvings("block_out_channels"),
    width=lambda config: cast("tuple[int, ...]", config["block_out_channels"])[0],
)
