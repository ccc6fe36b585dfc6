"""Flux.2: dev, and klein of 4 and 9 billion parameters (Black Forest Labs, 2025 and 2026).

As Flux.1, with one modulation for all blocks of a kind, gated MLPs, no biases, and latents that hold 2×2
pixels of the autoencoder in their channels. Only dev is told its guidance, and reads prompts by another text
encoder. https://github.com/black-forest-labs/flux2
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
from loraloom.models.names import Names, Swapped
from loraloom.models.parts.flux_latents import FLUX2_LATENTS
from loraloom.models.parts.flux_names import ATTENTION, DOUBLE, FUSED, SINGLE, SINGLE_QKV
from loraloom.models.parts.predictions import flux_flow
from loraloom.models.recipe import Recipe, Use
from loraloom.models.text.templates import NO_THOUGHT, USER_TURN

THETA = 2000
AXES = 4


def config(shapes: Shapes) -> Config:
    width, channels = shapes["img_in.weight"]
    norm = "double_blocks.0.img_attn.norm.key_norm."
    (head,) = shapes.get(norm + "scale") or shapes[norm + "weight"]
    inner = shapes["double_blocks.0.img_mlp.2.weight"][1]
    if width % head or head % (2 * AXES):
        raise ModelFileError(f"a Flux.2 transformer of width {width} cannot have heads of {head}")
    return {
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count_blocks(shapes, "double_blocks.{}.img_attn.qkv.weight"),
        "num_single_layers": count_blocks(shapes, "single_blocks.{}.linear1.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": inner / width,
        "axes_dims_rope": (head // AXES,) * AXES,
        "rope_theta": THETA,
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def comfyui_names(path: str) -> Iterator[str]:
    if path.endswith(".linear1_qkv"):
        yield "diffusion_model." + path
    elif "_stream_modulation" not in path and not path.startswith("time_guidance_embed."):
        yield from prefixed("transformer.", "lycoris_", "lora_transformer_", "")(path)


NAMES = Names(
    {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": Swapped("norm_out.linear"),
        **ATTENTION,
        "double_blocks.{}.img_mlp.0": DOUBLE + "ff.linear_in",
        "double_blocks.{}.img_mlp.2": DOUBLE + "ff.linear_out",
        "double_blocks.{}.txt_mlp.0": DOUBLE + "ff_context.linear_in",
        "double_blocks.{}.txt_mlp.2": DOUBLE + "ff_context.linear_out",
        "double_blocks.{}.img_attn.norm.query_norm": DOUBLE + "attn.norm_q",
        "double_blocks.{}.img_attn.norm.key_norm": DOUBLE + "attn.norm_k",
        "double_blocks.{}.txt_attn.norm.query_norm": DOUBLE + "attn.norm_added_q",
        "double_blocks.{}.txt_attn.norm.key_norm": DOUBLE + "attn.norm_added_k",
        "single_blocks.{}.linear1": SINGLE + "attn.to_qkv_mlp_proj",
        "single_blocks.{}.linear2": SINGLE + "attn.to_out",
        "single_blocks.{}.norm.query_norm": SINGLE + "attn.norm_q",
        "single_blocks.{}.norm.key_norm": SINGLE + "attn.norm_k",
    },
    parts={
        "single_blocks.{}.linear1": FUSED,
    },
    also={
        "single_blocks.{}.linear1_qkv": SINGLE_QKV,
        "single_transformer_blocks.{}.proj_out": SINGLE + "attn.to_out",
        "transformer_blocks.{}.ff.net.0.proj": DOUBLE + "ff.linear_in",
        "transformer_blocks.{}.ff.net.2": DOUBLE + "ff.linear_out",
        "transformer_blocks.{}.ff_context.net.0.proj": DOUBLE + "ff_context.linear_in",
        "transformer_blocks.{}.ff_context.net.2": DOUBLE + "ff_context.linear_out",
        "time_text_embed.{*}": "time_guidance_embed.{*}",
    },
)

KLEIN_USE = Use(
    "qwen3",
    "qwen3_4b",
    ("4b", "8b"),
    template=USER_TURN + NO_THOUGHT,
    brackets="letters",
    layers=(9, 18, 27),
    min_length=512,
    masks=True,
    gives_mask=True,
)
KLEIN = Recipe(
    name="flux2_klein",
    uses=(KLEIN_USE,),
    context=(("qwen3_4b",),),
    types=("flux2", "flux"),
)
KLEIN_VL = replace(
    KLEIN,
    name="flux2_klein_vl",
    uses=(replace(KLEIN_USE, encoder="qwen3vl", key="qwen3vl_4b"),),
    context=(("qwen3vl_4b",),),
)
FLUX2_DEV = Recipe(
    name="flux2_dev",
    uses=(
        Use(
            "mistral3",
            "mistral3_24b",
            template="[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give"
            " structured responses focusing on object relationships, object\nattribution and actions without"
            " speculation.[/SYSTEM_PROMPT][INST]{}[/INST]",
            brackets="letters",
            layers=(10, 20, 30),
            gives_mask=True,
        ),
    ),
    context=(("mistral3_24b",),),
    types=("flux2",),
    otherwise=True,
)

FAMILY = Family(
    name="flux2",
    title="Flux.2",
    marks=(
        "img_in.weight",
        "double_stream_modulation_img.lin.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.0.linear1.weight",
        "final_layer.adaLN_modulation.1.weight",
    ),
    module=Module("diffusers.models.transformers.transformer_flux2:Flux2Transformer2DModel", config),
    names=NAMES,
    latents=FLUX2_LATENTS,
    prediction=flux_flow(2.02),
    prompt=KLEIN,
    prompt_where={"guidance_in.in_layer.weight": FLUX2_DEV},
    prompt_beside=(KLEIN_VL,),
    said=("flux-2", "flux2", "flux.2"),
    blocks={"double": "transformer_blocks", "single": "single_transformer_blocks"},
    context_width=number("joint_attention_dim"),
    sizes={3072: "klein 4B", 4096: "klein 9B", 6144: "dev"},
    keeps_references=True,
    lora=LoraFacts(
        base_version="flux2",
        signs=(
            LoraSign(r"stream_modulation|to_qkv_mlp_proj|_ff(_context)?_linear_(in|out)", weight=30.0),
            # Flux.1's names; layers of other widths, as MLPs are gated and three times as wide.
            LoraSign(r"double_blocks_\d+_|single_blocks_\d+_", (4096, 6144), 9.0),
            LoraSign(r"double_blocks_\d+_(img|txt)_mlp_2$", (9216, 18432), 9.0),
            LoraSign(r"single_blocks_\d+_linear2$", (12288, 16384, 24576), 9.0),
        ),
        comfyui=comfyui_names,
    ),
    training=TrainingFacts(architecture="flux-2-klein/lora", flat="lora_transformer_"),
)
