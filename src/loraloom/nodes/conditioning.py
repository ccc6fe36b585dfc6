"""Nodes that combine conditionings and say where and when each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.engine.node import Choice, NodeRun, Number, node
from loraloom.errors import InputError
from loraloom.nodes.autoencoding import encoded
from loraloom.nodes.sockets import Conditioning, Image, Latent, Mask, Vae
from loraloom.resampling import as_batch, resize_mask
from loraloom.runtime.services import services
from loraloom.sampling.types import Cond
from loraloom.sampling.types import Conditioning as ConditioningValue

CATEGORY = "conditioning"
ADVANCED = "advanced/conditioning"
FLUX = "advanced/conditioning/flux"

Share = Annotated[float, Number(min=0.0, max=1.0, step=0.01)]
Extent = Annotated[float, Number(min=0, max=1.0, step=0.01)]
AreaStrength = Annotated[float, Number(min=0.0, max=10.0, step=0.01)]
Side = Annotated[int, Number(min=64, max=16384, step=8)]
Offset = Annotated[int, Number(min=0, max=16384, step=8)]
Percent = Annotated[float, Number(min=0.0, max=1.0, step=0.001)]


def with_options(conditioning: ConditioningValue, options: Mapping[str, object]) -> ConditioningValue:
    """Every entry with further options."""
    return tuple(replace(cond, options={**cond.options, **options}) for cond in conditioning)


@node("ConditioningCombine", category=CATEGORY, display_name="Conditioning (Combine)")
def combine(conditioning_1: Conditioning, conditioning_2: Conditioning) -> Conditioning:
    """Let both conditionings predict, and average what they predict."""
    return conditioning_1 + conditioning_2


@node("ConditioningConcat", category=CATEGORY, display_name="Conditioning (Concat)")
def concat(conditioning_to: Conditioning, conditioning_from: Conditioning, *, run: NodeRun) -> Conditioning:
    """Append the tokens of one conditioning to those of another."""
    tail = _first(conditioning_from, run).context
    return tuple(replace(cond, context=torch.cat([cond.context, tail], dim=1)) for cond in conditioning_to)


@node("ConditioningAverage", category=CATEGORY, display_name="ConditioningAverage")
def average(
    conditioning_to: Conditioning,
    conditioning_from: Conditioning,
    conditioning_to_strength: Share = 1.0,
    *,
    run: NodeRun,
) -> Conditioning:
    """Mix the encoded prompts themselves; the strength is the share of conditioning_to."""
    other = _first(conditioning_from, run)

    def mixed(cond: Cond) -> Cond:
        missing = cond.context.shape[1] - other.context.shape[1]
        context = F.pad(other.context, (0, 0, 0, max(missing, 0)))[:, : cond.context.shape[1]]
        return replace(
            cond,
            context=cond.context.lerp(context, 1 - conditioning_to_strength),
            pooled=_mixed_pooled(cond.pooled, other.pooled, conditioning_to_strength),
        )

    return tuple(mixed(cond) for cond in conditioning_to)


def _mixed_pooled(pooled: Tensor | None, other: Tensor | None, share: float) -> Tensor | None:
    if pooled is None or other is None:
        return other if pooled is None else pooled
    return pooled.lerp(other, 1 - share)


def _first(conditioning: ConditioningValue, run: NodeRun) -> Cond:
    if not conditioning:
        raise InputError("conditioning_from is empty; connect an encoded prompt.")
    first, *others = conditioning
    if others:
        run.warn(f"conditioning_from has {len(conditioning)} entries; only the first one is used")
    return first


@node("ConditioningSetArea", category=CATEGORY, display_name="Conditioning (Set Area)")
def set_area(
    *,
    conditioning: Conditioning,
    width: Side = 64,
    height: Side = 64,
    x: Offset = 0,
    y: Offset = 0,
    strength: AreaStrength = 1.0,
) -> Conditioning:
    """Let a conditioning count in a rectangle of the picture only, in pixels."""
    area = (height // 8, width // 8, y // 8, x // 8)
    return with_options(conditioning, {"area": area, "strength": strength, "set_area_to_bounds": False})


@node(
    "ConditioningSetAreaPercentage", category=CATEGORY, display_name="Conditioning (Set Area with Percentage)"
)
def set_area_percentage(
    *,
    conditioning: Conditioning,
    width: Extent = 1.0,
    height: Extent = 1.0,
    x: Extent = 0,
    y: Extent = 0,
    strength: AreaStrength = 1.0,
) -> Conditioning:
    """Let a conditioning count in a rectangle of the picture only, in shares of its sides."""
    area = ("percentage", height, width, y, x)
    return with_options(conditioning, {"area": area, "strength": strength, "set_area_to_bounds": False})


@node("ConditioningSetAreaStrength", category=CATEGORY, display_name="ConditioningSetAreaStrength")
def set_area_strength(conditioning: Conditioning, strength: AreaStrength = 1.0) -> Conditioning:
    """Weigh a conditioning against others that cover the same pixels."""
    return with_options(conditioning, {"strength": strength})


@node("ConditioningSetMask", category=CATEGORY, display_name="Conditioning (Set Mask)")
def set_mask(
    *,
    conditioning: Conditioning,
    mask: Mask,
    strength: AreaStrength = 1.0,
    set_cond_area: Annotated[str, Choice(("default", "mask bounds"))],
) -> Conditioning:
    """Let a conditioning count where a mask is white; "mask bounds" evaluates it on that part alone."""
    options = {
        "mask": as_batch(mask),
        "mask_strength": strength,
        "set_area_to_bounds": set_cond_area != "default",
    }
    return with_options(conditioning, options)


@node("ConditioningSetTimestepRange", category=ADVANCED, display_name="ConditioningSetTimestepRange")
def set_range(conditioning: Conditioning, start: Percent = 0.0, end: Percent = 1.0) -> Conditioning:
    """Let a conditioning count in a part of the sampling range only: 0 is its noisy start."""
    return with_options(conditioning, {"start_percent": start, "end_percent": end})


@node("ConditioningZeroOut", category=ADVANCED, display_name="ConditioningZeroOut")
def zero_out(conditioning: Conditioning) -> Conditioning:
    """A conditioning of zeros with the same shape: what some models were trained with for no prompt."""
    return tuple(
        replace(
            cond,
            context=torch.zeros_like(cond.context),
            pooled=None if cond.pooled is None else torch.zeros_like(cond.pooled),
        )
        for cond in conditioning
    )


@node("FluxGuidance", category=FLUX, v3=True, python_module="comfy_extras.nodes_flux")
def flux_guidance(
    conditioning: Conditioning, guidance: Annotated[float, Number(min=0.0, max=100.0, step=0.1)] = 3.5
) -> Conditioning:
    """Set the guidance value that Flux was distilled with."""
    return with_options(conditioning, {"guidance": guidance})


@node("FluxDisableGuidance", category=FLUX, v3=True, python_module="comfy_extras.nodes_flux")
def no_flux_guidance(conditioning: Conditioning) -> Conditioning:
    """Give Flux no guidance value at all."""
    return with_options(conditioning, {"guidance": None})


@node(
    "InpaintModelConditioning",
    category="conditioning/inpaint",
    display_name="InpaintModelConditioning",
    outputs=("positive", "negative", "latent"),
)
def inpaint_model(
    *,
    positive: Conditioning,
    negative: Conditioning,
    vae: Vae,
    pixels: Image,
    mask: Mask,
    noise_mask: bool = True,
    run: NodeRun,
) -> tuple[Conditioning, Conditioning, Latent]:
    """Tell an inpainting model the picture with the masked part greyed out, and the mask."""
    network = services(run).memory.autoencoder(vae)
    step = network.downscale
    hole = resize_mask(mask, pixels.shape[2], pixels.shape[1])
    height, width = (side // step * step for side in pixels.shape[1:3])
    top, left = (side % step // 2 for side in pixels.shape[1:3])
    hole = hole[:, top : top + height, left : left + width]
    kept = pixels[:, top : top + height, left : left + width, :3]
    grey = (kept - 0.5) * (1.0 - hole.round())[..., None] + 0.5
    told = {
        "concat_latent_image": network.encode(grey),
        "concat_mask": hole[:, None],
        "latent_encoders": (vae.kind.name,),
    }
    latent = encoded(network.encode(pixels[..., :3]), vae)
    if noise_mask:
        latent["noise_mask"] = hole
    return with_options(positive, told), with_options(negative, told), latent
