"""Flux.1: dev, schnell, fill and control variants (Black Forest Labs, 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.models.family import ModelFamily, NetworkParts
from loraloom.models.flux_layout import LATENT, flux_blueprint, from_diffusers, is_flux, modules

if TYPE_CHECKING:
    from loraloom.sampling.types import Network, Parametrisation
    from loraloom.weights.source import WeightSource


def parametrisation(weights: WeightSource) -> Parametrisation:
    """Times shifted as for one megapixel; without guidance (schnell) they are not shifted."""
    from loraloom.sampling.parametrisation import Flow, FluxFlow

    return FluxFlow() if "guidance_in.in_layer.weight" in weights else Flow(shift=1.0, multiplier=1.0)


def adapter(parts: NetworkParts) -> Network:
    from loraloom.models.flux_network import FluxNetwork

    return FluxNetwork(parts)


FAMILY = ModelFamily(
    name="flux",
    title="Flux.1",
    latent=LATENT,
    text_kind="flux",
    text_roles=("clip_l", "t5xxl"),
    matches=is_flux,
    blueprint=flux_blueprint,
    parametrisation=parametrisation,
    adapter=adapter,
    diffusers_names=modules,
    from_diffusers=from_diffusers,
    metadata_names=("flux-1", "flux1", "flux.1"),
)
