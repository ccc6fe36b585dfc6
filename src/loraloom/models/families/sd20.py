"""Stable Diffusion 2.0 and 2.1, eps ("base") and v-prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.models.family import Blueprint, ModelFamily, NetworkParts, Shapes
from loraloom.models.unet_layout import (
    SD_LATENT,
    diffusers_names,
    from_diffusers,
    heads_of_64,
    is_unet,
    unet_blueprint,
)

if TYPE_CHECKING:
    from loraloom.sampling.types import Network, Parametrisation
    from loraloom.weights.source import WeightSource

V_PREDICTION_SPREAD = 0.09
"""Standard deviation of the last attention's first norm bias, above which a network was trained on v: what
tells the published files apart, which carry no mark."""


def matches(shapes: Shapes) -> bool:
    """A UNet with linear projections that is told nothing but the prompt."""
    is_linear = is_unet(shapes) and len(shapes["middle_block.1.proj_in.weight"]) == 2
    return is_linear and "label_emb.0.0.weight" not in shapes


def blueprint(shapes: Shapes) -> Blueprint:
    return unet_blueprint(shapes, heads_of_64)


def parametrisation(weights: WeightSource) -> Parametrisation:
    from loraloom.models.predictions import discrete

    name = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    is_v = name in weights and float(weights.read(name).float().std()) > V_PREDICTION_SPREAD
    return discrete(weights, default="v" if is_v else "eps")


def adapter(parts: NetworkParts) -> Network:
    from loraloom.models.unet_network import UNetNetwork

    return UNetNetwork(parts)


FAMILY = ModelFamily(
    name="sd20",
    title="Stable Diffusion 2",
    latent=SD_LATENT,
    text_kind="sd20",
    text_roles=("clip_h",),
    matches=matches,
    blueprint=blueprint,
    parametrisation=parametrisation,
    adapter=adapter,
    diffusers_names=diffusers_names,
    from_diffusers=from_diffusers,
    metadata_names=("stable-diffusion-v2", "sd_v2", "sd_2"),
)
