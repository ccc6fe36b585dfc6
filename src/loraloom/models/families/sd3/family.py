"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): two streams, text and picture, joined in attention.

The original fuses query, key and value. The last block of the text stream ends in attention; its modulation
has scale and shift in the other order in diffusers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from loraloom.models.family import (
    Config,
    Family,
    LoraFacts,
    LoraSign,
    Module,
    Shapes,
    count_blocks,
    number,
    prefixed,
)
from loraloom.models.latent_format import LatentFormat
from loraloom.models.names import Names, Row, Rows, Swapped
from loraloom.models.parts.predictions import flow
from loraloom.models.recipe import Recipe, Use

OURS, THEIRS = "joint_blocks.{}.", "transformer_blocks.{}."


def _rows() -> dict[str, Row]:
    rows: dict[str, Row] = {
        "pos_embed": "pos_embed.pos_embed",
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "context_embedder": "context_embedder",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": Swapped("norm_out.linear"),
    }
    picture, text = OURS + "x_block.", OURS + "context_block."
    for attention in ("attn", "attn2"):
        own = f"{picture}{attention}."
        rows[own + "qkv"] = Rows(*(f"{THEIRS}{attention}.to_{part}" for part in "qkv"))
        rows[own + "proj"] = f"{THEIRS}{attention}.to_out.0"
        rows[own + "ln_q"] = f"{THEIRS}{attention}.norm_q"
        rows[own + "ln_k"] = f"{THEIRS}{attention}.norm_k"
    rows[text + "attn.qkv"] = Rows(*(f"{THEIRS}attn.add_{part}_proj" for part in "qkv"))
    rows[text + "attn.proj"] = THEIRS + "attn.to_add_out"
    rows[text + "attn.ln_q"] = THEIRS + "attn.norm_added_q"
    rows[text + "attn.ln_k"] = THEIRS + "attn.norm_added_k"
    for stream, suffix in ((picture, ""), (text, "_context")):
        rows[stream + "mlp.fc1"] = f"{THEIRS}ff{suffix}.net.0.proj"
        rows[stream + "mlp.fc2"] = f"{THEIRS}ff{suffix}.net.2"
        rows[stream + "adaLN_modulation.1"] = f"{THEIRS}norm1{suffix}.linear"
    return rows


@dataclass(frozen=True, slots=True)
class Sd3Names:
    """One row depends on which block is the last."""

    def of_native(self, shapes: Shapes) -> Names:
        return self._table(count_blocks(shapes, "joint_blocks.{}.x_block.attn.qkv.weight"))

    def of_module(self, shapes: Shapes) -> Names | None:
        blocks = count_blocks(shapes, "transformer_blocks.{}.attn.add_q_proj.weight")
        return self._table(blocks) if blocks and "pos_embed.pos_embed" in shapes else None

    def _table(self, blocks: int) -> Names:
        last = "context_block.adaLN_modulation.1"
        module = Swapped(f"transformer_blocks.{blocks - 1}.norm1_context.linear")
        return Names({f"joint_blocks.{blocks - 1}.{last}": module, **_rows()})


def config(shapes: Shapes) -> Config:
    width = shapes["x_embedder.proj.weight"][0]
    blocks = count_blocks(shapes, "joint_blocks.{}.x_block.attn.qkv.weight")
    dual = [n for n in range(blocks) if f"joint_blocks.{n}.x_block.attn2.qkv.weight" in shapes]
    return {
        "in_channels": shapes["x_embedder.proj.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0] // 4,
        "num_layers": blocks,
        "attention_head_dim": 64,
        "num_attention_heads": width // 64,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": tuple(dual),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


SD3 = Recipe(
    name="sd3",
    uses=(
        Use("clip_l", "l", layers=(-2,), stand_in=768),
        Use("clip_g", "g", layers=(-2,), stand_in=1280),
        Use("t5xxl", "t5xxl", norm_layer=True, min_length=77, stand_in=4096),
    ),
    context=(("l", "g"), ("t5xxl",)),
    pooled=(("l", "pooled"), ("g", "projected")),
    types=("sd3",),
    width=4096,
)

FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3",
    marks=(
        "pos_embed",
        "x_embedder.proj.weight",
        "y_embedder.mlp.0.weight",
        "joint_blocks.0.context_block.attn.qkv.weight",
        "joint_blocks.0.x_block.attn.qkv.weight",
    ),
    module=Module("diffusers.models.transformers.transformer_sd3:SD3Transformer2DModel", config),
    names=Sd3Names(),
    latents=LatentFormat(name="sd3", channels=16, scale=1.5305, shift=0.0609, tiny="taesd3"),
    prediction=flow(shift=3.0, multiplier=1000.0),
    prompt=SD3,
    said=("stable-diffusion-3", "sd3"),
    gguf="sd3",
    blocks={"double": "transformer_blocks"},
    context_width=number("joint_attention_dim"),
    sizes={1536: "medium", 2432: "large"},
    lora=LoraFacts(
        signs=(
            LoraSign(r"joint_blocks_\d+_"),
            LoraSign(r"^transformer_blocks_\d+_(attn2?_|ff_|norm1_)", (1536, 2432), 2.0),
            LoraSign(r"^transformer_blocks_\d+_(attn_(add|to_add)_|ff_context_)", weight=0.5),
        ),
        text_is_fixed=False,
        comfyui=prefixed("transformer.", "base_model.model.", "lora_transformer_", "lycoris_"),
    ),
)
