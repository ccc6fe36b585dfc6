"""Pictures that a model looks at beside its prompt: references, and latents laid beside its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, cast

import torch
from torch import Tensor

from loraloom.engine.node import Choice, NodeRun, node
from loraloom.nodes.conditioning import FLUX, with_options
from loraloom.nodes.sockets import Conditioning, Image, Latent, LatentValue, Vae
from loraloom.runtime.services import services
from loraloom.sampling.types import Cond
from loraloom.sampling.types import Conditioning as ConditioningValue

REFERENCE_METHODS = ("offset", "index", "uxo/uno", "index_timestep_zero")


def with_references(conditioning: ConditioningValue, *latents: Tensor) -> ConditioningValue:
    """Every entry with further reference latents, after those that it has."""

    def extended(cond: Cond) -> Cond:
        known = cast("tuple[Tensor, ...]", cond.options.get("reference_latents") or ())
        return replace(cond, options={**cond.options, "reference_latents": (*known, *latents)})

    return tuple(map(extended, conditioning))


@node(
    "ReferenceLatent",
    category="advanced/conditioning/edit_models",
    v3=True,
    python_module="comfy_extras.nodes_edit_model",
)
def reference_latent(conditioning: Conditioning, latent: Latent | None = None) -> Conditioning:
    """Show an edit model a picture, as a latent; several follow each other in the order of the nodes."""
    return conditioning if latent is None else with_references(conditioning, latent["samples"])


@node(
    "FluxKontextMultiReferenceLatentMethod",
    category=FLUX,
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_flux",
)
def reference_method(
    conditioning: Conditioning, reference_latents_method: Annotated[str, Choice(REFERENCE_METHODS)]
) -> Conditioning:
    """Say where a model puts reference pictures among its positions, and at what time it sees them."""
    is_diagonal = any(part in reference_latents_method for part in ("uxo", "uso"))
    method = "uxo" if is_diagonal else reference_latents_method
    return with_options(conditioning, {"reference_latents_method": method})


@node(
    "InstructPixToPixConditioning",
    category="conditioning/instructpix2pix",
    outputs=("positive", "negative", "latent"),
    v3=True,
    python_module="comfy_extras.nodes_ip2p",
)
def beside_picture(
    positive: Conditioning, negative: Conditioning, vae: Vae, pixels: Image, *, run: NodeRun
) -> tuple[Conditioning, Conditioning, Latent]:
    """Lay a picture beside the latent that a model works on (control models, InstructPix2Pix)."""
    encoded = services(run).memory.autoencoder(vae).encode(pixels[..., :3])
    told = {"concat_latent_image": encoded}
    empty = LatentValue(samples=torch.zeros_like(encoded))
    return with_options(positive, told), with_options(negative, told), empty
