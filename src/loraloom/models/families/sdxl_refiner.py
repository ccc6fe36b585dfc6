"""Stable Diffusion XL, refiner (Podell et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.models.family import Blueprint, ModelFamily, NetworkParts, Shapes
from loraloom.models.unet_layout import (
    SDXL_LATENT,
    diffusers_names,
    from_diffusers,
    heads_of_64,
    is_unet,
    read_layout,
    unet_blueprint,
)

if TYPE_CHECKING:
    from loraloom.sampling.types import Network, Parametrisation
    from loraloom.weights.source import WeightSource


def matches(shapes: Shapes) -> bool:
    """A UNet that is told sizes, whose first and deepest levels have no attention."""
    if "label_emb.0.0.weight" not in shapes or not is_unet(shapes):
        return False
    depths = read_layout(shapes).depths
    return depths[0] == 0 and depths[-1] == 0


def blueprint(shapes: Shapes) -> Blueprint:
    return unet_blueprint(shapes, heads_of_64)


def parametrisation(weights: WeightSource) -> Parametrisation:
    from loraloom.models.predictions import discrete

    return discrete(weights, default="eps")


def adapter(parts: NetworkParts) -> Network:
    from loraloom.models.unet_network import RefinerNetwork

    return RefinerNetwork(parts)


FAMILY = ModelFamily(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    latent=SDXL_LATENT,
    text_kind="refiner",
    text_roles=("clip_g",),
    matches=matches,
    blueprint=blueprint,
    parametrisation=parametrisation,
    adapter=adapter,
    diffusers_names=diffusers_names,
    from_diffusers=from_diffusers,
    metadata_names=("stable-diffusion-xl-v1-refiner",),
)
