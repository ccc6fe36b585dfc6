"""FLUX 3 klein, also distilled to few steps (Black Forest Labs, 2026).

The new picture, its references and the text first pass through blocks of their own, then through joint ones.
Known from diffusers' class and its converter alone: no figures of ComfyUI were at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.models.family import Config, Family, LoraFacts, LoraSign, Module, Shapes, count_blocks, number
from loraloom.models.names import Names, Swapped
from loraloom.models.parts.flux_latents import FLUX2_LATENTS
from loraloom.models.parts.predictions import flow
from loraloom.models.recipe import Recipe, Use
from loraloom.models.text.templates import USER_TURN

if TYPE_CHECKING:
    from torch import nn

AXES = 4


def config(shapes: Shapes) -> Config:
    width, channels = shapes["emb_in.image.weight"]
    (head,) = shapes["single_blocks.0.norm.key_norm.scale"]
    inner = shapes["single_blocks.0.mlp_out.weight"][1]
    if width % head or head % (2 * AXES):
        raise ModelFileError(f"a FLUX 3 transformer of width {width} cannot have heads of {head}")
    return {
        "in_channels": channels,
        "cond_in_channels": shapes["emb_in.image_cond.weight"][1],
        "num_layers": count_blocks(shapes, "txt_mode_blocks.{}.q_proj.weight"),
        "num_single_layers": count_blocks(shapes, "single_blocks.{}.q_proj.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": inner / width,
        "axes_dims_rope": (head // AXES,) * AXES,
        "flow_map": "ref_time_in.in_layer.weight" in shapes,
    }


def finish(module: nn.Module) -> None:
    from loraloom.models.families.flux3.network import keep_norms_whole

    keep_norms_whole(module)


_GROUPS = {
    "content_mode_blocks.{}.{}.": "mode_blocks.{}.{}.",
    "txt_mode_blocks.{}.": "txt_mode_blocks.{}.",
    "single_blocks.{}.": "single_transformer_blocks.{}.",
}
_LAYERS = {
    "q_proj": "attn.to_q",
    "k_proj": "attn.to_k",
    "v_proj": "attn.to_v",
    "attn_out": "attn.to_out.0",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
    "mlp_in": "ff.linear_in",
    "mlp_out": "ff.linear_out",
}
NAMES = Names(
    {
        "emb_in.{}": "x_embedders.{}",
        "txt_in": "context_embedder",
        "time_in.in_layer": "timestep_embedder.linear_1",
        "time_in.out_layer": "timestep_embedder.linear_2",
        "ref_time_in.in_layer": "target_timestep_embedder.linear_1",
        "ref_time_in.out_layer": "target_timestep_embedder.linear_2",
        "early_stream_modulations.{}.lin": "early_stream_modulations.{}.linear",
        "single_stream_modulations.{}.lin": "single_stream_modulations.{}.linear",
        "final_layer.image.linear": "proj_out",
        "final_layer.image.adaLN_modulation.1": Swapped("norm_out.linear"),
    }
    | {
        start + native: module + layer
        for start, module in _GROUPS.items()
        for native, layer in _LAYERS.items()
    },
    unused=("repa_projectors.*",),
)

RECIPE = Recipe(
    name="flux3",
    uses=(
        Use(
            "qwen3vl",
            "qwen3vl_4b",
            ("4b",),
            template=USER_TURN,
            brackets="letters",
            layers=tuple(range(4, 33, 4)),
            multiple=80,
            padding_place=1,
            masks=True,
        ),
    ),
    context=(("qwen3vl_4b",),),
    types=("flux3",),
)

FAMILY = Family(
    name="flux3",
    title="FLUX 3",
    marks=(
        "emb_in.image.weight",
        "emb_in.image_cond.weight",
        "content_mode_blocks.image.0.q_proj.weight",
        "txt_mode_blocks.0.q_proj.weight",
        "single_blocks.0.mlp_in.weight",
        "final_layer.image.adaLN_modulation.1.weight",
    ),
    module=Module("diffusers.models.transformers.transformer_flux3:Flux3Transformer2DModel", config, finish),
    names=NAMES,
    latents=FLUX2_LATENTS,
    prediction=flow(shift=6.93),
    prompt=RECIPE,
    said=("flux-3", "flux3", "flux.3"),
    context_width=number("joint_attention_dim"),
    blocks={"single": "single_transformer_blocks"},
    lora=LoraFacts(
        base_version="flux3",
        signs=(LoraSign(r"content_mode_blocks|txt_mode_blocks|^mode_blocks", weight=30.0),),
    ),
)
