"""Krea 2 (Krea AI, 2026): one stream of text and picture, over twelve layers of the text encoder.

A small transformer joins the layers token by token. Every block adds a table of its own to one projection of
the time, and norms are stored without the 1 that is added to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

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
from loraloom.models.names import Names
from loraloom.models.parts.predictions import flux_flow
from loraloom.models.parts.wan_latents import WAN21_LATENTS
from loraloom.models.recipe import Recipe, Use
from loraloom.models.text.templates import DESCRIBE, PICTURE, USER_TURN

NORMS = ("norm", "norm1", "norm2", "norm_q", "norm_k")
BLOCK, FUSION = "blocks.{}.", "txtfusion.{}.{}."


def config(shapes: Shapes) -> Config:
    width, channels = shapes["first.weight"]
    text = shapes["txtmlp.0.scale"][0]
    (head,) = shapes["blocks.0.attn.qknorm.knorm.scale"]
    (text_head,) = shapes["txtfusion.layerwise_blocks.0.attn.qknorm.knorm.scale"]
    if width % head or text % text_head or head < 16 or channels % 4:
        raise ModelFileError(f"widths of {width} and {text} cannot have heads of {head} and {text_head}")
    side = head // 16 * 6
    fusion = "txtfusion.layerwise_blocks.0."
    return {
        "in_channels": channels,
        "num_layers": count_blocks(shapes, BLOCK + "attn.wq.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "num_key_value_heads": shapes["blocks.0.attn.wk.weight"][0] // head,
        "intermediate_size": shapes["blocks.0.mlp.gate.weight"][0],
        "timestep_embed_dim": shapes["tmlp.0.weight"][1],
        "text_hidden_dim": text,
        "num_text_layers": shapes["txtfusion.projector.weight"][1],
        "text_num_attention_heads": text // text_head,
        "text_num_key_value_heads": shapes[fusion + "attn.wk.weight"][0] // text_head,
        "text_intermediate_size": shapes[fusion + "mlp.gate.weight"][0],
        "num_layerwise_text_blocks": count_blocks(shapes, "txtfusion.layerwise_blocks.{}.attn.wq.weight"),
        "num_refiner_text_blocks": count_blocks(shapes, "txtfusion.refiner_blocks.{}.attn.wq.weight"),
        "axes_dims_rope": (head - 2 * side, side, side),
        "rope_theta": 1000.0,
    }


def _block(native: str, module: str) -> Iterator[tuple[str, str]]:
    for theirs, ours in (
        ("wq", "to_q"),
        ("wk", "to_k"),
        ("wv", "to_v"),
        ("gate", "to_gate"),
        ("wo", "to_out.0"),
    ):
        yield f"{native}attn.{theirs}", f"{module}attn.{ours}"
    for part in "qk":
        yield f"{native}attn.qknorm.{part}norm.scale", f"{module}attn.norm_{part}.weight"
    for part in ("gate", "up", "down"):
        yield f"{native}mlp.{part}", f"{module}ff.{part}"
    yield f"{native}prenorm.scale", f"{module}norm1.weight"
    yield f"{native}postnorm.scale", f"{module}norm2.weight"


def comfyui_names(path: str) -> Iterator[str]:
    """The norms of diffusers' module are not among them; the outermost layer of attention has two names."""
    if path.rpartition(".")[2] in NORMS:
        return
    for name in (path, path.removesuffix(".0")) if path.endswith(".to_out.0") else (path,):
        yield from prefixed("diffusion_model.", "transformer.", "lycoris_", "")(name)


KREA2 = Recipe(
    name="krea2",
    uses=(
        Use(
            "qwen3vl",
            "qwen3vl_4b",
            ("4b",),
            template=DESCRIBE,
            picture_template=USER_TURN,
            takes_whole=True,
            brackets="letters",
            layers=tuple(range(2, 36, 3)),
            masks=True,
            cut="opening",
        ),
    ),
    context=(("qwen3vl_4b",),),
    types=("krea2",),
    picture_text=PICTURE,
)

FAMILY = Family(
    name="krea2",
    title="Krea 2",
    marks=(
        "first.weight",
        "txtfusion.projector.weight",
        "txtmlp.0.scale",
        "blocks.0.attn.qknorm.knorm.scale",
        "blocks.0.mod.lin",
        "last.linear.weight",
    ),
    module=Module(
        "diffusers.models.transformers.transformer_krea2:Krea2Transformer2DModel", config, exact=NORMS
    ),
    names=Names(
        {
            "first": "img_in",
            "tmlp.0": "time_embed.linear_1",
            "tmlp.2": "time_embed.linear_2",
            "tproj.1": "time_mod_proj",
            "txtmlp.0.scale": "txt_in.norm.weight",
            "txtmlp.1": "txt_in.linear_1",
            "txtmlp.3": "txt_in.linear_2",
            "txtfusion.projector": "text_fusion.projector",
            "last.linear": "final_layer.linear",
            "last.norm.scale": "final_layer.norm.weight",
            "last.modulation.lin": "final_layer.scale_shift_table",
            BLOCK + "mod.lin": "transformer_blocks.{}.scale_shift_table",
            **dict(_block(BLOCK, "transformer_blocks.{}.")),
            **dict(_block(FUSION, "text_fusion.{}.{}.")),
        }
    ),
    latents=replace(WAN21_LATENTS, frames=False),
    prediction=flux_flow(1.15),
    prompt=KREA2,
    said=("krea-2", "krea2", "krea_2"),
    end_to_end=("text_fusion",),
    asks_for_placing=True,
    blocks={"single": "transformer_blocks"},
    context_width=lambda config: number("num_text_layers")(config) * number("text_hidden_dim")(config),
    lora=LoraFacts(
        base_version="krea2",
        signs=(
            LoraSign(r"^blocks_\d+_(attn_(w[qkvo]|gate)|mlp_(gate|up|down))$"),
            LoraSign(r"^transformer_blocks_\d+_(attn_to_gate|ff_(gate|up|down))$"),
            LoraSign(r"^transformer_blocks_\d+_attn_", (6144,)),
            LoraSign(r"^(txtfusion|text_fusion)_"),
        ),
        comfyui=comfyui_names,
    ),
    training=TrainingFacts(architecture="krea-2/lora", flat="lycoris_"),
)
