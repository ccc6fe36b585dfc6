"""Qwen 3 (Yang et al. 2025), 0.6B to 8B: Z-Image, Flux.2 klein, Anima."""

from __future__ import annotations

from loraloom.models.encoder import EncoderKind, LoraNames, Size
from loraloom.models.family import Blueprint, Shapes
from loraloom.models.parts.causal_layouts import (
    FIRST,
    QWEN_VOCABULARY,
    TOKENS,
    causal_blueprint,
    language_model,
    measure,
    text_config,
)

NAMES = ("qwen3_4b", "qwen3_8b", "qwen3_06b", "qwen3_2b")

CLASSES = (
    "transformers.models.qwen3.modeling_qwen3:Qwen3Model",
    "transformers.models.qwen3.configuration_qwen3:Qwen3Config",
)


def blueprint(prefix: str, shapes: Shapes) -> Blueprint:
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    return causal_blueprint(prefix, shapes, CLASSES, text_config(shapes, rope_parameters=rope))


ENCODER = EncoderKind(
    name="qwen3",
    title="Qwen3",
    layouts=(
        language_model(
            has=(f"{FIRST}self_attn.q_norm.weight", f"{FIRST}post_attention_layernorm.weight"),
            lacks=(
                f"{FIRST}post_feedforward_layernorm.weight",
                f"{FIRST}mlp.experts.gate_up_proj",
                f"{FIRST}linear_attn.A_log",
                "visual.merger.linear_fc2.weight",
            ),
        ),
    ),
    sizes=(Size("0.6b", 1024, 28), Size("2b", 2048, 28), Size("4b", 2560, 36), Size("8b", 4096, 36)),
    measure=measure,
    blueprint=blueprint,
    classes=CLASSES,
    vocabulary=QWEN_VOCABULARY,
    tokens_table=(TOKENS,),
    prefixes=tuple(f"text_encoders.{name}.transformer." for name in NAMES),
    lora=LoraNames(5, NAMES, root="model."),
)
