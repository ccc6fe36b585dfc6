"""Stable Diffusion 1.x (Rombach et al. 2022), its inpainting models included."""

from __future__ import annotations

from loraloom.models.family import Family, Shapes, TrainingFacts, number
from loraloom.models.parts.predictions import discrete
from loraloom.models.parts.unet_layout import (
    SD_LATENT,
    UNET_MARKS,
    UNetNames,
    eight_heads,
    unet_lora,
    unet_module,
)
from loraloom.models.recipe import Recipe, Use


def fits(shapes: Shapes) -> bool:
    """A UNet whose projections are convolutions: only the first generation has them."""
    return len(shapes["middle_block.1.proj_in.weight"]) == 4


SD15 = Recipe(
    name="sd15",
    uses=(Use("clip_l", "l", norm_layer=True),),
    context=(("l",),),
    pooled=(("l", "projected"),),
    types=("stable_diffusion",),
    otherwise=True,
    not_for=("sd3", "hidream", "flux", "sdxl"),
)

FAMILY = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    marks=UNET_MARKS,
    fits=fits,
    module=unet_module(eight_heads),
    names=UNetNames(),
    latents=SD_LATENT,
    prediction=discrete("eps"),
    prompt=SD15,
    said=("stable-diffusion-v1", "sd_v1", "sd_1", "sd1"),
    gguf="sd1",
    context_width=number("cross_attention_dim"),
    lora=unet_lora(768, kohya="module", base_version="sd_v1"),
    training=TrainingFacts(
        architecture="stable-diffusion-v1/lora",
        text=("clip_l",),
        stated_prediction="epsilon",
        implementation="https://github.com/Stability-AI/generative-models",
    ),
)
