"""Z-Image and Z-Image-Turbo (Tongyi-MAI, 2025): one stream of text and picture tokens.

The original fuses query, key and value; diffusers keeps them apart, and names what depends on the patch size
after it. https://github.com/Tongyi-MAI/Z-Image
"""

from __future__ import annotations

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
from loraloom.models.names import SAME, Names, Rows
from loraloom.models.parts.flux_latents import FLUX1_LATENTS
from loraloom.models.parts.predictions import flow
from loraloom.models.parts.text_positions import LONGEST_TEXT
from loraloom.models.recipe import Recipe, Use
from loraloom.models.text.templates import USER_TURN

LONGEST_SIDE = 1024
"""Tokens of a side of the picture that positions are made for: 16384 pixels."""


def config(shapes: Shapes) -> Config:
    width, text = shapes["cap_embedder.1.weight"]
    (head,) = shapes["noise_refiner.0.attention.k_norm.weight"]
    return {
        "in_channels": shapes["x_embedder.weight"][1] // 4,
        "dim": width,
        "n_layers": count_blocks(shapes, "layers.{}.attention.qkv.weight"),
        "n_refiner_layers": count_blocks(shapes, "noise_refiner.{}.attention.qkv.weight"),
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "cap_feat_dim": text,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
        "axes_dims": [head // 4, head // 8 * 3, head // 8 * 3],
        "axes_lens": [LONGEST_TEXT, LONGEST_SIDE, LONGEST_SIDE],
    }


Z_IMAGE = Recipe(
    name="z_image",
    uses=(
        Use(
            "qwen3",
            "qwen3_4b",
            ("4b",),
            template=USER_TURN,
            brackets="letters",
            layers=(-2,),
            masks=True,
            gives_mask=True,
        ),
    ),
    context=(("qwen3_4b",),),
    types=("lumina2",),
    otherwise=True,
)

FAMILY = Family(
    name="z_image",
    title="Z-Image",
    marks=(
        "cap_embedder.1.weight",
        "noise_refiner.0.attention.k_norm.weight",
        "noise_refiner.0.attention.qkv.weight",
        "noise_refiner.0.adaLN_modulation.0.weight",
        "x_pad_token",
        "cap_pad_token",
    ),
    unmarks=("siglip_embedder.0.weight",),
    module=Module("diffusers.models.transformers.transformer_z_image:ZImageTransformer2DModel", config),
    names=Names(
        {
            "x_embedder": "all_x_embedder.2-1",
            "final_layer.linear": "all_final_layer.2-1.linear",
            "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
            "{*}.attention.qkv": Rows("{*}.attention.to_q", "{*}.attention.to_k", "{*}.attention.to_v"),
            "{*}.attention.out": "{*}.attention.to_out.0",
            "{*}.attention.q_norm": "{*}.attention.norm_q",
            "{*}.attention.k_norm": "{*}.attention.norm_k",
        },
        rest=SAME,
        unused=("norm_final.*",),
    ),
    latents=FLUX1_LATENTS,
    prediction=flow(shift=3.0),
    prompt=Z_IMAGE,
    said=("z-image", "z_image", "zimage"),
    gguf="lumina2",
    end_to_end=("x_embedder", "cap_embedder"),
    blocks={"layers": "layers"},
    context_width=number("cap_feat_dim"),
    lora=LoraFacts(
        base_version="z_image",
        signs=(LoraSign(r"^layers_\d+_(attention|feed_forward|adaLN)|^(noise|context)_refiner_"),),
        comfyui=prefixed("diffusion_model.", "transformer.", "lycoris_", ""),
    ),
    training=TrainingFacts(architecture="z-image/lora", flat="lycoris_"),
)
