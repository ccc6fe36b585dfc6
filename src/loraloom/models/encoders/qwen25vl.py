"""Qwen 2.5 VL (Bai et al. 2025), 3B and 7B, with its vision tower: Qwen-Image and its edits."""

from __future__ import annotations

from loraloom.models.encoder import EncoderKind, LoraNames, Size, Vision
from loraloom.models.family import Blueprint, Shapes
from loraloom.models.parts.causal_layouts import (
    FIRST,
    QWEN_PICTURE,
    QWEN_VOCABULARY,
    TOKENS,
    causal_blueprint,
    language_model,
    measure,
    text_config,
    tower_heads,
)
from loraloom.models.parts.encoder_layouts import depth

NAMES = ("qwen25_7b", "qwen25_3b")

CLASSES = (
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLTextModel",
    "transformers.models.qwen2_5_vl.configuration_qwen2_5_vl:Qwen2_5_VLTextConfig",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VisionTransformerPretrainedModel",
    "transformers.models.qwen2_5_vl.configuration_qwen2_5_vl:Qwen2_5_VLVisionConfig",
)


def blueprint(prefix: str, shapes: Shapes) -> Blueprint:
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    config = text_config(shapes, rope_parameters=rope, rms_norm_eps=1e-6)
    del config["head_dim"]  # always the width by the number of heads
    return causal_blueprint(prefix, shapes, CLASSES, config, tower_config(shapes))


def tower_config(shapes: Shapes) -> dict[str, object] | None:
    """The tower's configuration; None where a file has none."""
    patch = shapes.get("visual.patch_embed.proj.weight")
    if patch is None:
        return None
    return {
        "hidden_size": patch[0],
        "patch_size": patch[-1],
        "depth": depth(shapes, "visual.blocks."),
        "num_heads": tower_heads(patch[0]),
        "intermediate_size": shapes["visual.blocks.0.mlp.gate_proj.weight"][0],
        "out_hidden_size": shapes["visual.merger.mlp.2.weight"][0],
    }


ENCODER = EncoderKind(
    name="qwen25vl",
    title="Qwen2.5-VL",
    layouts=(
        language_model(has=(f"{FIRST}self_attn.k_proj.bias",), lacks=(f"{FIRST}self_attn.q_norm.weight",)),
    ),
    sizes=(Size("3b", 2048, 36), Size("7b", 3584, 28)),
    measure=measure,
    blueprint=blueprint,
    classes=CLASSES,
    vocabulary=QWEN_VOCABULARY,
    tokens_table=(TOKENS,),
    prefixes=tuple(f"text_encoders.{name}.transformer." for name in NAMES),
    lora=LoraNames(6, NAMES, root="model."),
    vision=Vision(
        patch=14,
        mean=(0.48145466, 0.4578275, 0.40821073),
        deviation=(0.26862954, 0.26130258, 0.27577711),
        token=QWEN_PICTURE,
    ),
)
