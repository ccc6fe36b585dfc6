"""Pictures that a model looks at beside its prompt: references, and latents laid beside its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, cast

import torch
from torch import Tensor

from loraloom.engine.node import Choice, NodeRun, Options, Socket, node
from loraloom.errors import InputError
from loraloom.models.handles import KEEPS_REFERENCES
from loraloom.nodes.conditioning import FLUX, with_options
from loraloom.nodes.picture_prompts import numbered, to_area
from loraloom.nodes.sockets import Conditioning, Image, Latent, LatentValue, Model, Vae
from loraloom.runtime.services import services
from loraloom.sampling.types import Cond
from loraloom.sampling.types import Conditioning as ConditioningValue

MULTIPLE = 16
"""Pixels that sides of references are multiples of."""

REFERENCE_METHODS = ("offset", "index", "uxo/uno", "index_timestep_zero")


def with_references(
    conditioning: ConditioningValue, *latents: Tensor, encoder: str = ""
) -> ConditioningValue:
    """Every entry with further reference latents, after those that it has. encoder: the kind of autoencoder
    that wrote them; "": not known."""

    def extended(cond: Cond) -> Cond:
        known = cast("tuple[Tensor, ...]", cond.options.get("reference_latents") or ())
        encoders = cast("tuple[str, ...]", cond.options.get("latent_encoders") or ())
        told = {"latent_encoders": (*encoders, encoder)} if encoder else {}
        return replace(cond, options={**cond.options, "reference_latents": (*known, *latents), **told})

    return tuple(map(extended, conditioning))


@node(
    "ReferenceLatent",
    category="advanced/conditioning/edit_models",
    v3=True,
    python_module="comfy_extras.nodes_edit_model",
)
def reference_latent(conditioning: Conditioning, latent: Latent | None = None) -> Conditioning:
    """Show an edit model a picture, as a latent; several follow each other in the order of the nodes."""
    if latent is None:
        return conditioning
    return with_references(conditioning, latent["samples"], encoder=latent.get("encoder", ""))


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
    told = {"concat_latent_image": encoded, "latent_encoders": (vae.kind.name,)}
    empty = LatentValue(samples=torch.zeros_like(encoded))
    return with_options(positive, told), with_options(negative, told), empty


@node(
    "ReferenceMultiLatent",
    category="advanced/conditioning/edit_models",
    display_name="Set Reference Multi Latent",
    outputs=("positive", "negative", "empty_latent"),
    v3=True,
    python_module="comfy_extras.nodes_edit_model",
)
def reference_latents(
    positive: Conditioning,
    negative: Conditioning | None = None,
    vae: Vae | None = None,
    resolution: Annotated[
        str, Choice(("resize",)), Options({"variants": {"resize": ["megapixels"]}})
    ] = "resize",
    *,
    run: NodeRun,
    **said: Annotated[object, Socket("*")],
) -> tuple[Conditioning, Conditioning, Latent]:
    """Show an edit model several pictures, and make an empty latent as large as the first.

    Pictures are connected as `images.image0`, `images.image1` …; `resolution.megapixels` is what each is
    brought to. Its rules are read off ComfyUI's templates: sides are multiples of 16 here."""
    del resolution
    if vae is None:
        raise InputError("ReferenceMultiLatent has no VAE to encode its pictures with; connect one")
    megapixels = said.pop("resolution.megapixels", 1.0)
    if isinstance(megapixels, bool) or not isinstance(megapixels, int | float) or not 0 < megapixels <= 64:
        raise InputError(f"resolution.megapixels should be a number above 0, not {megapixels!r}")
    pictures = [to_area(picture, int(megapixels * 1024**2), MULTIPLE) for picture in numbered(said, "image")]
    if not pictures:
        raise InputError(
            "ReferenceMultiLatent has no pictures; connect some as images.image0, images.image1 …"
        )
    network = services(run).memory.autoencoder(vae)
    latents = [network.encode(picture[..., :3]) for picture in pictures]
    empty = LatentValue(samples=torch.zeros_like(latents[0][:1]))
    kind = vae.kind.name
    shown, against = (with_references(side, *latents, encoder=kind) for side in (positive, negative or ()))
    return shown, against, empty


@node(
    "FluxKVCache",
    category="advanced/model",
    display_name="Flux KV Cache",
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_flux",
)
def reference_cache(model: Model, *, run: NodeRun) -> Model:
    """Let Flux.2 compute reference pictures in the first step alone, at time 0, as its models for this were
    trained: later steps attend to the keys and values that the first one made of them."""
    if not model.family.keeps_references:
        run.warn(f"FluxKVCache is for Flux.2; {model.family.title} computes its references in every step")
        return model
    told = model.with_option("reference_method", "index_timestep_zero")
    return told.with_option(KEEPS_REFERENCES, True)
