"""Gemma 2 2B (Gemma Team 2024): Lumina 2. Its tokenizer is in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.models.encoder import EncoderKind, LoraNames, Size, Tokenizer, Vocabulary
from loraloom.models.family import Blueprint, Shapes
from loraloom.models.parts.causal_layouts import (
    FIRST,
    TOKENS,
    causal_blueprint,
    language_model,
    measure,
    text_config,
)

if TYPE_CHECKING:
    from loraloom.weights.source import WeightSource

VOCABULARY = "spiece_model"

HEAD = 256

CLASSES = (
    "transformers.models.gemma2.modeling_gemma2:Gemma2Model",
    "transformers.models.gemma2.configuration_gemma2:Gemma2Config",
)


def blueprint(prefix: str, shapes: Shapes) -> Blueprint:
    """As ComfyUI runs it: attention is neither capped nor limited to a window."""
    config = text_config(
        shapes,
        HEAD,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        query_pre_attn_scalar=HEAD,
        attn_logit_softcapping=None,
        attn_implementation="eager",
    )
    layers = config["num_hidden_layers"]
    assert isinstance(layers, int)
    config["layer_types"] = ["full_attention"] * layers
    return causal_blueprint(prefix, shapes, CLASSES, config, unused=(VOCABULARY,))


def tokenizer(weights: WeightSource) -> Tokenizer:
    from loraloom.models.text.file_vocabularies import sentencepiece_tokenizer

    return sentencepiece_tokenizer(weights, f"{ENCODER.prefix}{VOCABULARY}")


ENCODER = EncoderKind(
    name="gemma2",
    title="Gemma 2",
    layouts=(
        language_model(
            has=(f"{FIRST}post_feedforward_layernorm.weight",),
            lacks=(f"{FIRST}self_attn.q_norm.weight",),
            carries=VOCABULARY,
        ),
    ),
    sizes=(Size("2b", 2304, 26),),
    measure=measure,
    blueprint=blueprint,
    classes=CLASSES,
    vocabulary=Vocabulary(tokenizer, start=2, pad=0),
    tokens_table=(TOKENS,),
    prefixes=("text_encoders.gemma2_2b.transformer.",),
    lora=LoraNames(9, ("gemma2_2b",), root="model."),
)
