"""Stable Diffusion XL, refiner (Podell et al. 2023)."""

from __future__ import annotations

from loraloom.models.family import Family, Shapes, number
from loraloom.models.parts.predictions import discrete
from loraloom.models.parts.unet_layout import (
    SDXL_LATENT,
    UNET_MARKS,
    UNetNames,
    heads_of_64,
    read_layout,
    unet_lora,
    unet_module,
)
from loraloom.models.recipe import Recipe, Use


def fits(shapes: Shapes) -> bool:
    """A UNet whose first and deepest levels have no attention."""
    depths = read_layout(shapes).depths
    return depths[0] == 0 and depths[-1] == 0


REFINER = Recipe(
    name="refiner",
    uses=(Use("clip_g", "g", layers=(-2,)),),
    context=(("g",),),
    pooled=(("g", "projected"),),
    types=("sdxl", "stable_diffusion"),
    otherwise=True,
    not_for=("sd3", "hidream", "flux", "stable_cascade"),
)

FAMILY = Family(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    marks=(*UNET_MARKS, "label_emb.0.0.weight"),
    fits=fits,
    module=unet_module(heads_of_64),
    names=UNetNames(),
    latents=SDXL_LATENT,
    prediction=discrete("eps"),
    prompt=REFINER,
    said=("stable-diffusion-xl-v1-refiner",),
    gguf="sdxl",
    context_width=number("cross_attention_dim"),
    told_pictures=lambda config: True,
    lora=unet_lora(1280, deep=True),
)
