"""Stable Diffusion 2.0 and 2.1, eps ("base") and v-prediction, and unCLIP, which is told a picture beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.models.family import Family, Shapes, TrainingFacts, number
from loraloom.models.parts.predictions import discrete
from loraloom.models.parts.unet_layout import (
    SD_LATENT,
    UNET_MARKS,
    UNetNames,
    heads_of_64,
    read_layout,
    unet_lora,
    unet_module,
)
from loraloom.models.recipe import Recipe, Use

if TYPE_CHECKING:
    from loraloom.sampling.types import Parametrisation
    from loraloom.weights.source import WeightSource

V_PREDICTION_SPREAD = 0.09
"""Standard deviation of the last attention's first norm bias, above which a network was trained on v: what
tells the published files apart, which carry no mark."""


def fits(shapes: Shapes) -> bool:
    """A UNet with linear projections that is told nothing but the prompt; or something else beside it, and
    has attention in its first level."""
    is_linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    return is_linear and ("label_emb.0.0.weight" not in shapes or read_layout(shapes).depths[0] > 0)


def prediction(weights: WeightSource) -> Parametrisation:
    name = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    is_v = name in weights and float(weights.read(name).float().std()) > V_PREDICTION_SPREAD
    return discrete("v" if is_v else "eps")(weights)


SD20 = Recipe(
    name="sd20",
    uses=(Use("clip_h", "h", layers=(-2,), norm_layer=True),),
    context=(("h",),),
    pooled=(("h", "projected"),),
    types=("stable_diffusion",),
    otherwise=True,
)

FAMILY = Family(
    name="sd20",
    title="Stable Diffusion 2",
    marks=UNET_MARKS,
    fits=fits,
    module=unet_module(heads_of_64),
    names=UNetNames(),
    latents=SD_LATENT,
    prediction=prediction,
    prompt=SD20,
    said=("stable-diffusion-v2", "sd_v2", "sd_2"),
    gguf="sd1",
    context_width=number("cross_attention_dim"),
    told_pictures=lambda config: "projection_class_embeddings_input_dim" in config,
    lora=unet_lora(1024, kohya="module", base_version="sd_v2"),
    training=TrainingFacts(
        architecture="stable-diffusion-v2-768-v/lora",
        implementation="https://github.com/Stability-AI/generative-models",
    ),
)
