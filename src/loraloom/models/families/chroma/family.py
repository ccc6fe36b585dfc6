"""Chroma (lodestones, 2025): Flux.1's blocks without modulation of their own, which one small network, the
approximator, makes for all of them. https://huggingface.co/lodestones/Chroma
"""

from __future__ import annotations

from collections.abc import Iterator

from loraloom.errors import ModelFileError
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
from loraloom.models.names import Names, Row
from loraloom.models.parts.flux_latents import FLUX1_LATENTS
from loraloom.models.parts.flux_names import ATTENTION, DOUBLE, FUSED, MLP, SINGLE, SINGLE_QKV
from loraloom.models.parts.predictions import flux_flow
from loraloom.models.recipe import Recipe, Use

APPROXIMATOR = "distilled_guidance_layer"


ROWS: dict[str, Row] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    f"{APPROXIMATOR}.in_proj": f"{APPROXIMATOR}.in_proj",
    f"{APPROXIMATOR}.out_proj": f"{APPROXIMATOR}.out_proj",
    f"{APPROXIMATOR}.layers.{{}}.in_layer": f"{APPROXIMATOR}.layers.{{}}.linear_1",
    f"{APPROXIMATOR}.layers.{{}}.out_layer": f"{APPROXIMATOR}.layers.{{}}.linear_2",
    f"{APPROXIMATOR}.norms.{{}}.scale": f"{APPROXIMATOR}.norms.{{}}.weight",
    "single_blocks.{}.linear1": FUSED,
    "single_blocks.{}.linear2": SINGLE + "proj_out",
    **ATTENTION,
    **MLP,
}


def comfyui_names(path: str) -> Iterator[str]:
    """ComfyUI has no further names for the approximator."""
    if path.endswith(".linear1_qkv"):
        yield "diffusion_model." + path
    elif not path.startswith(APPROXIMATOR):
        yield from prefixed("", "transformer.", "lycoris_", "lora_transformer_")(path)


def config(shapes: Shapes) -> Config:
    width = shapes["img_in.weight"][0]
    (head,) = shapes["double_blocks.0.img_attn.norm.key_norm.scale"]
    if width % head or head % 16:
        raise ModelFileError(f"a Chroma transformer of width {width} cannot have heads of {head}")
    hidden, channels = shapes[f"{APPROXIMATOR}.in_proj.weight"]
    return {
        "in_channels": shapes["img_in.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0] // 4,
        "patch_size": 2,
        "num_layers": count_blocks(shapes, "double_blocks.{}.img_attn.qkv.weight"),
        "num_single_layers": count_blocks(shapes, "single_blocks.{}.linear1.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": (head // 8, head // 16 * 7, head // 16 * 7),
        "approximator_num_channels": channels,
        "approximator_hidden_dim": hidden,
        "approximator_layers": count_blocks(shapes, f"{APPROXIMATOR}.layers.{{}}.in_layer.weight"),
    }


CHROMA = Recipe(
    name="chroma",
    uses=(Use("t5xxl", "t5xxl", norm_layer=True, blank_is_padding=True),),
    context=(("t5xxl",),),
    types=("chroma", "pixart"),
)

FAMILY = Family(
    name="chroma",
    title="Chroma",
    marks=(
        f"{APPROXIMATOR}.in_proj.weight",
        f"{APPROXIMATOR}.norms.0.scale",
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "single_blocks.0.linear1.weight",
        "final_layer.linear.weight",
    ),
    module=Module("diffusers.models.transformers.transformer_chroma:ChromaTransformer2DModel", config),
    names=Names(
        ROWS,
        also={
            "single_blocks.{}.linear1_qkv": SINGLE_QKV,
            SINGLE + "attn.to_qkv_mlp_proj": (
                *SINGLE_QKV,
                SINGLE + "proj_mlp",
            ),
            SINGLE + "attn.to_out": SINGLE + "proj_out",
            **{f"{DOUBLE}{feed}.linear_in": f"{DOUBLE}{feed}.net.0.proj" for feed in ("ff", "ff_context")},
            **{f"{DOUBLE}{feed}.linear_out": f"{DOUBLE}{feed}.net.2" for feed in ("ff", "ff_context")},
        },
    ),
    latents=FLUX1_LATENTS,
    prediction=flux_flow(1.15),
    prompt=CHROMA,
    said=("chroma",),
    gguf="flux",
    context_width=number("joint_attention_dim"),
    lora=LoraFacts(
        signs=(LoraSign(APPROXIMATOR, weight=9.0),),
        comfyui=comfyui_names,
    ),
)
