"""Qwen-Image (2025), 2512, Edit 2509 and 2511, and layered: two streams, text and pictures.

The names of its files are those of diffusers' module. https://github.com/QwenLM/Qwen-Image
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
from loraloom.models.names import SAME, Names
from loraloom.models.parts.predictions import flux_flow
from loraloom.models.parts.wan_latents import WAN21_LATENTS
from loraloom.models.recipe import Recipe, Use
from loraloom.models.text.templates import ALTER, DESCRIBE, PICTURE

ZERO_MARK = "__index_timestep_zero__"
"""Stands in the files of Edit 2511, whose references are seen at time 0."""

LAYER_MARK = "time_text_embed.addition_t_embedding.weight"


def config(shapes: Shapes) -> Config:
    width, channels = shapes["img_in.weight"]
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": count_blocks(shapes, "transformer_blocks.{}.img_mod.1.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_norm.weight"][0],
        "axes_dims_rope": (head // 8, head // 16 * 7, head // 16 * 7),
        "zero_cond_t": ZERO_MARK in shapes,
        "use_additional_t_cond": LAYER_MARK in shapes,
    }


QWEN_IMAGE = Recipe(
    name="qwen_image",
    uses=(
        Use(
            "qwen25vl",
            "qwen25_7b",
            ("7b",),
            template=DESCRIBE,
            picture_template=ALTER,
            takes_whole=True,
            brackets="letters",
            masks=True,
            cut="opening",
        ),
    ),
    context=(("qwen25_7b",),),
    types=("qwen_image",),
    otherwise=True,
    not_for=("hunyuan_image", "longcat_image", "hunyuan_video_15", "kandinsky5", "kandinsky5_image"),
    picture_text=PICTURE,
)

FAMILY = Family(
    name="qwen_image",
    title="Qwen-Image",
    marks=(
        "img_in.weight",
        "txt_norm.weight",
        "proj_out.weight",
        "transformer_blocks.0.img_mod.1.weight",
        "transformer_blocks.0.txt_mod.1.weight",
        "transformer_blocks.0.attn.add_q_proj.weight",
        "transformer_blocks.0.attn.norm_q.weight",
    ),
    fits=lambda shapes: shapes["img_in.weight"][1] == shapes["proj_out.weight"][0],
    module=Module("diffusers.models.transformers.transformer_qwenimage:QwenImageTransformer2DModel", config),
    names=Names(rest=SAME, unused=(ZERO_MARK,)),
    latents=WAN21_LATENTS,
    prediction=flux_flow(1.15),
    prompt=QWEN_IMAGE,
    said=("qwen-image", "qwen_image", "qwen"),
    gguf="qwen_image",
    blocks={"double": "transformer_blocks"},
    context_width=number("joint_attention_dim"),
    lora=LoraFacts(
        signs=(
            LoraSign(r"^transformer_blocks_\d+_(img|txt)_(mod_1|mlp_net)", weight=9.0),
            LoraSign(r"^transformer_blocks_\d+_attn_", (3072,)),
        ),
        comfyui=prefixed("", "transformer.", "lycoris_"),
    ),
    training=TrainingFacts(architecture="qwen-image/lora"),
)
