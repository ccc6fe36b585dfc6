"""T5 1.1's encoder (Raffel et al. 2020): Flux.1, SD3, Chroma, and the token numbers of Anima."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from loraloom.models.encoder import EncoderKind, LoraNames, NamedTensor, Size, Tokenizer, Vocabulary
from loraloom.models.family import Blueprint, Placement, Shapes
from loraloom.models.parts.encoder_layouts import as_named, depth, placements

if TYPE_CHECKING:
    from loraloom.models.text.t5 import T5Config, T5Text
    from loraloom.weights.source import WeightSource

TABLES = ("shared.weight", "encoder.embed_tokens.weight")
"""Files name T5's token vectors in either of two ways, or in both."""

FIRST = "encoder.block.0.layer."


def layout(shapes: Shapes) -> Sequence[NamedTensor] | None:
    """T5 1.1: gated, and with position biases in the first block only (unlike T5 1.0 and UMT5)."""
    is_t5 = f"{FIRST}0.SelfAttention.q.weight" in shapes and f"{FIRST}1.DenseReluDense.wi_1.weight" in shapes
    is_umt5 = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes
    return as_named(shapes) if is_t5 and not is_umt5 and any(name in shapes for name in TABLES) else None


def config(shapes: Shapes) -> T5Config:
    from loraloom.models.text.t5 import T5Config

    vocabulary, width = shapes[_table(shapes)]
    buckets, heads = shapes[f"{FIRST}0.SelfAttention.relative_attention_bias.weight"]
    return T5Config(
        vocabulary=vocabulary,
        width=width,
        layers=depth(shapes, "encoder.block."),
        heads=heads,
        inner=shapes[f"{FIRST}0.SelfAttention.q.weight"][0],
        feed_forward=shapes[f"{FIRST}1.DenseReluDense.wi_0.weight"][0],
        buckets=buckets,
    )


def blueprint(prefix: str, shapes: Shapes) -> Blueprint:
    made = config(shapes)

    def build() -> T5Text:
        from loraloom.models.text.t5 import T5Text

        return T5Text(made)

    places = {**placements(prefix, shapes), "shared.weight": Placement(prefix + _table(shapes))}
    return Blueprint(asdict(made), build, places, ("*.encoder.embed_tokens.weight",))


def measure(shapes: Shapes) -> tuple[int, int]:
    return shapes[_table(shapes)][-1], depth(shapes, "encoder.block.")


def tokenizer(weights: WeightSource) -> Tokenizer:
    from loraloom.models.text.vocabularies import t5_tokenizer

    del weights
    return t5_tokenizer()


def _table(shapes: Shapes) -> str:
    return next((name for name in TABLES if name in shapes), TABLES[1])


ENCODER = EncoderKind(
    name="t5xxl",
    title="T5-XXL",
    layouts=(layout,),
    sizes=(Size("xxl", 4096, 24),),
    measure=measure,
    blueprint=blueprint,
    vocabulary=Vocabulary(tokenizer, end=1, pad=0),
    tokens_table=TABLES,
    prefixes=("text_encoders.t5xxl.transformer.",),
    lora=LoraNames(4, ("t5xxl", "t5"), number=3, root="encoder."),
)
