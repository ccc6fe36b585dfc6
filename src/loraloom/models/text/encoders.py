"""The text encoders as the shapes of their weights determine them, by role.

Native names carry the role: "clip_l.transformer.text_model.…". OpenCLIP files (clip_g, clip_h) have been
brought to the same names by whoever opened them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, Placement, Placements, Shapes

if TYPE_CHECKING:
    from loraloom.models.text.clip import ClipConfig, ClipText
    from loraloom.models.text.t5 import T5Config, T5Text

_UNUSED = ("*.position_ids", "*.logit_scale", "*.encoder.embed_tokens.weight")


def text_blueprint(role: str, shapes: Shapes) -> Blueprint:
    """The module of one text encoder; shapes by native name.

    Raises ModelFileError when they are not those of an encoder of this role."""
    make = _BLUEPRINTS.get(role)
    if make is None:
        raise ModelFileError(f"no text encoder is called {role!r}; known are {', '.join(_BLUEPRINTS)}")
    prefix = f"{role}.transformer."
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    try:
        return make(prefix, own)
    except (KeyError, ValueError, IndexError) as error:
        raise ModelFileError(f"not the weights of a {role} text encoder: {error}") from error


def clip_config(shapes: Shapes, *, quick_gelu: bool) -> ClipConfig:
    from loraloom.models.text.clip import ClipConfig

    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    projection = shapes.get("text_projection.weight")
    return ClipConfig(
        vocabulary=vocabulary,
        positions=shapes["text_model.embeddings.position_embedding.weight"][0],
        width=width,
        layers=_depth(shapes, "text_model.encoder.layers."),
        inner=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        quick_gelu=quick_gelu,
        projection=None if projection is None else projection[0],
    )


def t5_config(shapes: Shapes) -> T5Config:
    from loraloom.models.text.t5 import T5Config

    first = "encoder.block.0.layer."
    vocabulary, width = shapes[_tokens_name(shapes)]
    buckets, heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
    return T5Config(
        vocabulary=vocabulary,
        width=width,
        layers=_depth(shapes, "encoder.block."),
        heads=heads,
        inner=shapes[f"{first}0.SelfAttention.q.weight"][0],
        feed_forward=shapes[f"{first}1.DenseReluDense.wi_0.weight"][0],
        buckets=buckets,
    )


def _clip(prefix: str, shapes: Shapes, *, quick_gelu: bool) -> Blueprint:
    config = clip_config(shapes, quick_gelu=quick_gelu)

    def build() -> ClipText:
        from loraloom.models.text.clip import ClipText

        return ClipText(config)

    return Blueprint(asdict(config), build, _placements(prefix, shapes), _UNUSED)


def _t5(prefix: str, shapes: Shapes) -> Blueprint:
    config = t5_config(shapes)

    def build() -> T5Text:
        from loraloom.models.text.t5 import T5Text

        return T5Text(config)

    tokens = Placement(prefix + _tokens_name(shapes))
    placements = {**_placements(prefix, shapes), "shared.weight": tokens}
    return Blueprint(asdict(config), build, placements, _UNUSED)


def _tokens_name(shapes: Shapes) -> str:
    """Files name T5's token vectors in either of two ways, or in both."""
    return "shared.weight" if "shared.weight" in shapes else "encoder.embed_tokens.weight"


def _placements(prefix: str, shapes: Shapes) -> Placements:
    return {name: Placement(prefix + name) for name in shapes}


def _depth(shapes: Shapes, prefix: str) -> int:
    """The number of layers whose names go on from `prefix` with 0, 1, 2 …"""
    numbers = {int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"the layers {prefix}… are not numbered from 0 without gaps")
    return len(numbers)


_BLUEPRINTS: Mapping[str, Callable[[str, Shapes], Blueprint]] = MappingProxyType(
    {
        "clip_l": lambda prefix, shapes: _clip(prefix, shapes, quick_gelu=True),
        "clip_g": lambda prefix, shapes: _clip(prefix, shapes, quick_gelu=False),
        "clip_h": lambda prefix, shapes: _clip(prefix, shapes, quick_gelu=False),
        "t5xxl": _t5,
    }
)
