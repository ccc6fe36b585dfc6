"""Stable Diffusion 1.x (Rombach et al. 2022), its inpainting models included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.models.family import Blueprint, ModelFamily, NetworkParts, Shapes
from loraloom.models.unet_layout import (
    SD_LATENT,
    diffusers_names,
    eight_heads,
    from_diffusers,
    is_unet,
    unet_blueprint,
)

if TYPE_CHECKING:
    from loraloom.sampling.types import Network, Parametrisation
    from loraloom.weights.source import WeightSource


def matches(shapes: Shapes) -> bool:
    """A UNet whose projections are convolutions: only the first generation has them."""
    return is_unet(shapes) and len(shapes["middle_block.1.proj_in.weight"]) == 4


def blueprint(shapes: Shapes) -> Blueprint:
    return unet_blueprint(shapes, eight_heads)


def parametrisation(weights: WeightSource) -> Parametrisation:
    from loraloom.models.predictions import discrete

    return discrete(weights, default="eps")


def adapter(parts: NetworkParts) -> Network:
    from loraloom.models.unet_network import UNetNetwork

    return UNetNetwork(parts)


FAMILY = ModelFamily(
    name="sd15",
    title="Stable Diffusion 1.5",
    latent=SD_LATENT,
    text_kind="sd15",
    text_roles=("clip_l",),
    matches=matches,
    blueprint=blueprint,
    parametrisation=parametrisation,
    adapter=adapter,
    diffusers_names=diffusers_names,
    from_diffusers=from_diffusers,
    metadata_names=("stable-diffusion-v1", "sd_v1", "sd_1"),
)
