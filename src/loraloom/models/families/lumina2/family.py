"""Lumina-Image 2.0 (Alpha-VLLM, 2025) and NetaYume: one stream of text and picture tokens, with fewer heads
for keys and values than for queries. https://github.com/Alpha-VLLM/Lumina-Image-2.0
"""

from __future__ import annotations

from collections.abc import Iterator

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
from loraloom.models.names import Names, Rows
from loraloom.models.parts.flux_latents import FLUX1_LATENTS
from loraloom.models.parts.predictions import flow
from loraloom.models.parts.text_positions import LONGEST_TEXT
from loraloom.models.recipe import Recipe, Use

LONGEST_SIDE = 1024
"""Tokens of a side of the picture that positions are made for: 16384 pixels."""


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
PLAIN = (
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
    "attention_norm1",
    "attention_norm2",
    "ffn_norm1",
    "ffn_norm2",
)
"""Parts of a block that ComfyUI knows by Z-Image's names."""


def comfyui_names(path: str) -> Iterator[str]:
    """ComfyUI reads Z-Image's names, which are not those of diffusers' module."""
    is_known = path.startswith(("all_", "cap_embedder.", "t_embedder.")) or path.endswith(
        (*(f".attention.{part}" for part in ATTENTION), *(f".{part}" for part in PLAIN))
    )
    if is_known:
        yield from prefixed("diffusion_model.", "transformer.", "lycoris_", "")(path)


def grouped(weight: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Queries as wide as the input; keys and values share the rest."""
    width = weight[1]
    return (width, (weight[0] - width) // 2, (weight[0] - width) // 2)


def config(shapes: Shapes) -> Config:
    width, text = shapes["cap_embedder.1.weight"]
    (head,) = shapes["noise_refiner.0.attention.k_norm.weight"]
    return {
        "in_channels": shapes["x_embedder.weight"][1] // 4,
        "hidden_size": width,
        "num_layers": count_blocks(shapes, "layers.{}.attention.qkv.weight"),
        "num_refiner_layers": count_blocks(shapes, "noise_refiner.{}.attention.qkv.weight"),
        "num_attention_heads": width // head,
        "num_kv_heads": grouped(shapes["noise_refiner.0.attention.qkv.weight"], 3)[1] // head,
        "cap_feat_dim": text,
        "axes_dim_rope": (head // 3,) * 3,
        "axes_lens": (LONGEST_TEXT, LONGEST_SIDE, LONGEST_SIDE),
    }


LUMINA2 = Recipe(
    name="lumina2",
    uses=(Use("gemma2", "gemma2_2b", layers=(-2,), masks=True, gives_mask=True),),
    context=(("gemma2_2b",),),
    types=("lumina2",),
    otherwise=True,
    not_for=("pixeldit",),
)

FAMILY = Family(
    name="lumina2",
    title="Lumina 2",
    marks=(
        "cap_embedder.1.weight",
        "noise_refiner.0.attention.k_norm.weight",
        "noise_refiner.0.attention.qkv.weight",
        "noise_refiner.0.adaLN_modulation.1.weight",
    ),
    unmarks=("clip_text_pooled_proj.0.weight",),
    module=Module("diffusers.models.transformers.transformer_lumina2:Lumina2Transformer2DModel", config),
    names=Names(
        {
            "x_embedder": "x_embedder",
            "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
            "cap_embedder.{}": "time_caption_embed.caption_embedder.{}",
            "final_layer.linear": "norm_out.linear_2",
            "final_layer.adaLN_modulation.1": "norm_out.linear_1",
            "context_refiner.{}.attention_norm1": "context_refiner.{}.norm1",
            "{*}.attention_norm1": "{*}.norm1.norm",
            "{*}.attention_norm2": "{*}.norm2",
            "{*}.ffn_norm1": "{*}.ffn_norm1",
            "{*}.ffn_norm2": "{*}.ffn_norm2",
            "{*}.adaLN_modulation.1": "{*}.norm1.linear",
            "{*}.attention.qkv": Rows("{*}.attn.to_q", "{*}.attn.to_k", "{*}.attn.to_v", sizes=grouped),
            "{*}.attention.out": "{*}.attn.to_out.0",
            "{*}.attention.q_norm": "{*}.attn.norm_q",
            "{*}.attention.k_norm": "{*}.attn.norm_k",
            "{*}.feed_forward.w1": "{*}.feed_forward.linear_1",
            "{*}.feed_forward.w2": "{*}.feed_forward.linear_2",
            "{*}.feed_forward.w3": "{*}.feed_forward.linear_3",
        },
        also={
            "all_x_embedder.2-1": "x_embedder",
            "all_final_layer.2-1.linear": "norm_out.linear_2",
            "cap_embedder.{}": "cap_embedder.{}",
            "t_embedder.mlp.{}": "t_embedder.mlp.{}",
            **{f"{{*}}.attention.{part}": f"{{*}}.attn.{part}" for part in ATTENTION},
            **{f"{{*}}.{part}": f"{{*}}.{part}" for part in PLAIN},
        },
        unused=("norm_final.*",),
    ),
    latents=FLUX1_LATENTS,
    prediction=flow(shift=6.0),
    prompt=LUMINA2,
    said=("lumina",),
    gguf="lumina2",
    blocks={"layers": "layers"},
    context_width=number("cap_feat_dim"),
    lora=LoraFacts(
        signs=(
            LoraSign(
                r"adaLN_modulation_1$|feed_forward_linear_[123]|(layers|refiner)_\d+_norm1_linear$",
                weight=2.0,
            ),
        ),
        comfyui=comfyui_names,
    ),
)
