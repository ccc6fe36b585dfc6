"""Anima (CircleStone Labs and Comfy Org, 2026): Cosmos-Predict2's blocks, with a small transformer of its own
that turns the states of Qwen3 into tokens as T5 numbers them.

https://huggingface.co/circlestone-labs/Anima
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from loraloom.errors import ModelFileError
from loraloom.models.family import Config, Family, LoraFacts, LoraSign, Module, Shapes, count_blocks
from loraloom.models.names import Names, Row
from loraloom.models.parts.predictions import flow
from loraloom.models.parts.wan_latents import WAN21_LATENTS
from loraloom.models.recipe import Recipe, Use

BLOCK, THEIRS = "blocks.{}.", "transformer_blocks.{}."
ADAPTER = "llm_adapter."

LONGEST_SIDE = 8192
"""Latent pixels of a side of the picture that positions are made for."""


def config(shapes: Shapes) -> Config:
    return {"transformer": _transformer(shapes), "adapter": _adapter(shapes)}


def _transformer(shapes: Shapes) -> Config:
    width, columns = shapes["x_embedder.proj.1.weight"]
    (head,) = shapes["blocks.0.self_attn.q_norm.weight"]
    if width % head or columns % 4:
        raise ModelFileError(f"a width of {width} cannot have heads of {head} and patches of {columns}")
    return {
        "in_channels": columns // 4 - 1,
        "out_channels": shapes["final_layer.linear.weight"][0] // 4,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": count_blocks(shapes, BLOCK + "mlp.layer1.weight"),
        "mlp_ratio": shapes["blocks.0.mlp.layer1.weight"][0] / width,
        "text_embed_dim": shapes["blocks.0.cross_attn.k_proj.weight"][1],
        "adaln_lora_dim": shapes["blocks.0.adaln_modulation_mlp.1.weight"][0],
        "max_size": (1, LONGEST_SIDE, LONGEST_SIDE),
        "rope_scale": (1.0, 4.0, 4.0),
        "extra_pos_embed_type": None,
    }


def _adapter(shapes: Shapes) -> Config:
    count, target = shapes[ADAPTER + "embed.weight"]
    width = shapes[ADAPTER + "out_proj.weight"][1]
    (head,) = shapes[ADAPTER + "blocks.0.cross_attn.q_norm.weight"]
    if width % head:
        raise ModelFileError(f"a width of {width} cannot have heads of {head}")
    return {
        "source_dim": shapes[ADAPTER + "blocks.0.cross_attn.k_proj.weight"][1],
        "target_dim": target,
        "model_dim": width,
        "num_layers": count_blocks(shapes, ADAPTER + BLOCK + "cross_attn.q_proj.weight"),
        "num_attention_heads": width // head,
        "mlp_ratio": shapes[ADAPTER + "blocks.0.mlp.0.weight"][0] / width,
        "target_vocab_size": count,
    }


def _rows() -> dict[str, Row]:
    rows: dict[str, Row] = {
        "x_embedder.proj.1": "patch_embed.proj",
        "t_embedder.1.{}": "time_embed.t_embedder.{}",
        "t_embedding_norm": "time_embed.norm",
        "final_layer.linear": "proj_out",
        "final_layer.adaln_modulation.{}": "norm_out.linear_{}",
        BLOCK + "mlp.layer1": THEIRS + "ff.net.0.proj",
        BLOCK + "mlp.layer2": THEIRS + "ff.net.2",
        ADAPTER + "{*}": ADAPTER + "{*}",
    }
    for number, part in enumerate(("self_attn", "cross_attn", "mlp"), 1):
        rows[f"{BLOCK}adaln_modulation_{part}.{{}}"] = f"{THEIRS}norm{number}.linear_{{}}"
    for number, part in enumerate(("self_attn", "cross_attn"), 1):
        own, theirs = f"{BLOCK}{part}.", f"{THEIRS}attn{number}."
        rows |= {f"{own}{letter}_proj": f"{theirs}to_{letter}" for letter in "qkv"}
        rows |= {f"{own}{letter}_norm": f"{theirs}norm_{letter}" for letter in "qk"}
        rows[own + "output_proj"] = theirs + "to_out.0"
    return rows


def no_names(path: str) -> Iterator[str]:
    """ComfyUI reads native names alone."""
    del path
    yield from ()


def text_width(config: Config) -> int:
    return cast("Mapping[str, int]", config["adapter"])["source_dim"]


ANIMA = Recipe(
    name="anima",
    uses=(
        Use("qwen3", "qwen3_06b", ("0.6b",), brackets="split", min_length=1, gives_mask=True),
        Use("t5xxl", "t5xxl", tokens_only=True),
    ),
    context=(("qwen3_06b",),),
    types=("stable_diffusion",),
    otherwise=True,
    not_for=("ace",),
)

FAMILY = Family(
    name="anima",
    title="Anima",
    marks=(
        "x_embedder.proj.1.weight",
        "blocks.0.mlp.layer1.weight",
        "blocks.0.self_attn.q_norm.weight",
        "llm_adapter.embed.weight",
        "llm_adapter.blocks.0.cross_attn.q_proj.weight",
    ),
    module=Module("loraloom.models.families.anima.network:build", config),
    names=Names(
        _rows(),
        also={"text_conditioner.{*}": ADAPTER + "{*}"},
        unused=("pos_embedder.*", "accum_*", "*_extra_state"),
    ),
    latents=replace(WAN21_LATENTS, frames=False),
    prediction=flow(shift=3.0),
    prompt=ANIMA,
    said=("anima",),
    gguf="cosmos",
    context_width=text_width,
    lora=LoraFacts(
        text_is_fixed=False,
        signs=(
            LoraSign(
                r"^blocks_\d+_(adaln_modulation|mlp_layer|(self|cross)_attn_\w+_proj)|^llm_adapter_",
                weight=2.0,
            ),
            LoraSign(r"^text_conditioner_|^transformer_blocks_\d+_norm[123]_linear_[12]$", weight=2.0),
        ),
        comfyui=no_names,
    ),
)
