"""Flux.1: dev, schnell, fill and control variants (Black Forest Labs, 2024).

The original fuses query, key and value (and, in single blocks, the first layer of the MLP) into one layer;
diffusers keeps them apart. The last modulation has scale and shift in the other order there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.models.family import (
    Config,
    Family,
    LoraFacts,
    LoraSign,
    Module,
    Shapes,
    TrainingFacts,
    count_blocks,
    number,
    prefixed,
)
from loraloom.models.names import Names, Swapped
from loraloom.models.parts.flux_latents import FLUX1_LATENTS
from loraloom.models.parts.flux_names import ATTENTION, DOUBLE, FUSED, MLP, SINGLE, SINGLE_QKV
from loraloom.models.parts.predictions import flow, flux_flow
from loraloom.models.recipe import Recipe, Use

if TYPE_CHECKING:
    from loraloom.sampling.types import Parametrisation
    from loraloom.weights.source import WeightSource


def config(shapes: Shapes) -> Config:
    width = shapes["img_in.weight"][0]
    (head,) = shapes["double_blocks.0.img_attn.norm.key_norm.scale"]
    if width % head or head % 16:
        raise ModelFileError(f"a Flux.1 transformer of width {width} cannot have heads of {head}")
    return {
        "in_channels": shapes["img_in.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count_blocks(shapes, "double_blocks.{}.img_attn.qkv.weight"),
        "num_single_layers": count_blocks(shapes, "single_blocks.{}.linear1.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": (head // 8, head // 16 * 7, head // 16 * 7),
    }


def prediction(weights: WeightSource) -> Parametrisation:
    """Times shifted as for one megapixel; without guidance (schnell) they are not shifted."""
    is_dev = "guidance_in.in_layer.weight" in weights
    return (flux_flow(1.15) if is_dev else flow(1.0))(weights)


def comfyui_names(path: str) -> Iterator[str]:
    if path.endswith(".linear1_qkv"):
        yield "diffusion_model." + path
    else:
        yield from prefixed("transformer.", "lycoris_", "lora_transformer_")(path)


NAMES = Names(
    {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": Swapped("norm_out.linear"),
        "double_blocks.{}.img_mod.lin": DOUBLE + "norm1.linear",
        "double_blocks.{}.txt_mod.lin": DOUBLE + "norm1_context.linear",
        **ATTENTION,
        **MLP,
        "single_blocks.{}.modulation.lin": SINGLE + "norm.linear",
        "single_blocks.{}.linear1": FUSED,
        "single_blocks.{}.linear2": SINGLE + "proj_out",
    },
    also={"single_blocks.{}.linear1_qkv": SINGLE_QKV},
)

FLUX1 = Recipe(
    name="flux",
    uses=(Use("clip_l", "l", norm_layer=True), Use("t5xxl", "t5xxl", norm_layer=True, min_length=256)),
    context=(("t5xxl",),),
    pooled=(("l", "pooled"),),
    types=("flux",),
)

FAMILY = Family(
    name="flux",
    title="Flux.1",
    marks=(
        "img_in.weight",
        "vector_in.in_layer.weight",
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "single_blocks.0.linear1.weight",
        "final_layer.adaLN_modulation.1.weight",
    ),
    unmarks=("double_blocks.0.img_mlp.gate_proj.weight",),
    module=Module("diffusers.models.transformers.transformer_flux:FluxTransformer2DModel", config),
    names=NAMES,
    latents=FLUX1_LATENTS,
    prediction=prediction,
    prompt=FLUX1,
    said=("flux-1", "flux1", "flux.1", "flux"),
    gguf="flux",
    blocks={"double": "transformer_blocks", "single": "single_transformer_blocks"},
    context_width=number("joint_attention_dim"),
    takes_styles=True,
    lora=LoraFacts(
        base_version="flux1",
        signs=(
            LoraSign(r"single_transformer_blocks_|double_blocks_\d+_|single_blocks_\d+_"),
            LoraSign(r"^transformer_blocks_(\d|1[0-8])_(attn_|ff_|norm1_)", (3072,), 1.5),
        ),
        rewrites=(
            (r"^(double_blocks\.\d+)\.processor\.(qkv|proj)1$", r"\1.img_attn.\2"),
            (r"^(double_blocks\.\d+)\.processor\.(qkv|proj)2$", r"\1.txt_attn.\2"),
            (r"^(single_blocks\.\d+)\.processor\.qkv$", r"\1.linear1_qkv"),
            (r"^(single_blocks\.\d+)\.processor\.proj$", r"\1.linear2"),
        ),
        comfyui=comfyui_names,
    ),
    training=TrainingFacts(
        architecture="flux-1-dev/lora",
        flat="lora_transformer_",
    ),
)
