"""Stable Diffusion XL, base model (Podell et al. 2023)."""

from __future__ import annotations

from loraloom.models.family import Family, Shapes, TrainingFacts, number
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
    """A UNet whose deepest level has attention and whose first has none."""
    depths = read_layout(shapes).depths
    return depths[0] == 0 and depths[-1] > 0


L = Use("clip_l", "l", layers=(-2,))
G = Use("clip_g", "g", layers=(-2,))
SDXL = Recipe(
    name="sdxl",
    uses=(L, G),
    context=(("l", "g"),),
    pooled=(("g", "projected"),),
    types=("sdxl",),
)

FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    marks=(*UNET_MARKS, "label_emb.0.0.weight"),
    fits=fits,
    module=unet_module(heads_of_64),
    names=UNetNames(),
    latents=SDXL_LATENT,
    prediction=discrete("eps"),
    prompt=SDXL,
    said=("stable-diffusion-xl-v1-base", "stable-diffusion-xl", "sdxl_base", "sdxl"),
    gguf="sdxl",
    context_width=number("cross_attention_dim"),
    told_pictures=lambda config: True,
    lora=unet_lora(2048, deep=True, base_version="sdxl_base_v1-0"),
    training=TrainingFacts(
        architecture="stable-diffusion-xl-v1-base/lora",
        text=("clip_l", "clip_g"),
        stated_prediction="epsilon",
        implementation="https://github.com/Stability-AI/generative-models",
    ),
)
