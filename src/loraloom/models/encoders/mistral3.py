"""Mistral Small 3 (Mistral AI 2025), whole or cut to its first layers: Flux.2 dev. Its tokenizer is in the
file."""

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

VOCABULARY = "tekken_model"

CLASSES = (
    "transformers.models.mistral.modeling_mistral:MistralModel",
    "transformers.models.mistral.configuration_mistral:MistralConfig",
)


def blueprint(prefix: str, shapes: Shapes) -> Blueprint:
    rope = {"rope_type": "default", "rope_theta": 1_000_000_000.0}
    config = text_config(shapes, rope_parameters=rope, rms_norm_eps=1e-5, sliding_window=None)
    return causal_blueprint(
        prefix, shapes, CLASSES, config, unused=(VOCABULARY, "vision_tower.*", "multi_modal_projector.*")
    )


def tokenizer(weights: WeightSource) -> Tokenizer:
    from loraloom.models.text.file_vocabularies import tekken_tokenizer

    return tekken_tokenizer(weights, f"{ENCODER.prefix}{VOCABULARY}")


ENCODER = EncoderKind(
    name="mistral3",
    title="Mistral Small 3",
    layouts=(
        language_model(
            has=(VOCABULARY,),
            lacks=(f"{FIRST}self_attn.q_norm.weight", f"{FIRST}self_attn.k_proj.bias"),
        ),
    ),
    sizes=(Size("24b", 5120, 40), Size("24b", 5120, 30)),
    measure=measure,
    blueprint=blueprint,
    classes=CLASSES,
    vocabulary=Vocabulary(tokenizer, start=1, pad=11),
    tokens_table=(TOKENS,),
    prefixes=("text_encoders.mistral3_24b.transformer.",),
    lora=LoraNames(8, ("mistral3_24b",), root="model."),
)
