"""Qwen 3 VL (Bai et al. 2025), 2B to 8B, with its vision tower: Qwen-Image 2.1, Krea 2."""

from __future__ import annotations

from dataclasses import replace

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

NAMES = ("qwen3vl_4b", "qwen3vl_8b", "qwen3vl_2b")

DEEP = {24: (5, 11, 17), 27: (8, 16, 24)}
"""Layers of a tower → those whose states are given to the first layers of the language model."""

CLASSES = (
    "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLTextModel",
    "transformers.models.qwen3_vl.configuration_qwen3_vl:Qwen3VLTextConfig",
    "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLVisionModel",
    "transformers.models.qwen3_vl.configuration_qwen3_vl:Qwen3VLVisionConfig",
)


def blueprint(prefix: str, shapes: Shapes) -> Blueprint:
    rope = {
        "rope_type": "default",
        "rope_theta": 5_000_000.0,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    config = text_config(shapes, rope_parameters=rope)
    return causal_blueprint(prefix, shapes, CLASSES, config, tower_config(shapes))


def tower_config(shapes: Shapes) -> dict[str, object]:
    patch = shapes["visual.patch_embed.proj.weight"]
    layers, deep = depth(shapes, "visual.blocks."), depth(shapes, "visual.deepstack_merger_list.")
    return {
        "hidden_size": patch[0],
        "patch_size": patch[-1],
        "depth": layers,
        "num_heads": tower_heads(patch[0]),
        "intermediate_size": shapes["visual.blocks.0.mlp.linear_fc1.weight"][0],
        "out_hidden_size": shapes["visual.merger.linear_fc2.weight"][0],
        "num_position_embeddings": shapes["visual.pos_embed.weight"][0],
        "deepstack_visual_indexes": DEEP.get(layers) or tuple(range(layers - deep, layers)),
    }


ENCODER = EncoderKind(
    name="qwen3vl",
    title="Qwen3-VL",
    layouts=(
        language_model(has=(f"{FIRST}self_attn.q_norm.weight", "visual.deepstack_merger_list.0.norm.weight")),
    ),
    sizes=(Size("2b", 2048, 28), Size("4b", 2560, 36), Size("8b", 4096, 36)),
    measure=measure,
    blueprint=blueprint,
    classes=CLASSES,
    vocabulary=replace(QWEN_VOCABULARY, thinks=True),
    tokens_table=(TOKENS,),
    prefixes=tuple(f"text_encoders.{name}.transformer." for name in NAMES),
    lora=LoraNames(7, NAMES, root="model."),
    vision=Vision(patch=16, mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5), token=QWEN_PICTURE),
)
