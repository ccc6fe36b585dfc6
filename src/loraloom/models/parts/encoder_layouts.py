"""How files lay text encoders out, and what the shapes of each architecture say. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from loraloom.models.encoder import NamedTensor, Tokenizer
from loraloom.models.family import Blueprint, Placement, Placements, Shapes

if TYPE_CHECKING:
    from loraloom.models.text.clip import ClipConfig, ClipText
    from loraloom.weights.source import WeightSource

CLIP_TOKENS = "text_model.embeddings.token_embedding.weight"

CLIP_UNUSED = ("*.position_ids", "*.logit_scale")

_OPEN_CLIP = {
    "token_embedding.weight": CLIP_TOKENS,
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_OPEN_CLIP_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    **{
        f"{ours}.{part}": f"{theirs}.{part}"
        for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"))
        for part in ("weight", "bias")
    },
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def as_named(shapes: Shapes, before: str = "") -> list[NamedTensor]:
    """All tensors under their own names, with something put before."""
    return [NamedTensor(before + key, key) for key in shapes]


def hugging_face_clip(shapes: Shapes) -> Sequence[NamedTensor] | None:
    return as_named(shapes) if CLIP_TOKENS in shapes else None


def oldest_clip(shapes: Shapes) -> Sequence[NamedTensor] | None:
    """As the oldest checkpoints of Stable Diffusion 1 have it."""
    is_clip = "embeddings.token_embedding.weight" in shapes
    return as_named(shapes, "text_model.") if is_clip else None


def open_clip(shapes: Shapes) -> Sequence[NamedTensor] | None:
    """OpenCLIP's layout (Ilharco et al. 2021): query, key and value are rows of one tensor, and the
    projection lies transposed."""
    if "token_embedding.weight" not in shapes:
        return None
    return [tensor for key in shapes for tensor in _from_open_clip(shapes, key)]


def _from_open_clip(shapes: Shapes, key: str) -> Iterator[NamedTensor]:
    if key in _OPEN_CLIP:
        yield NamedTensor(_OPEN_CLIP[key], key)
    elif key in ("text_projection", "text_projection.weight"):
        yield NamedTensor("text_projection.weight", key, transposed=key == "text_projection")
    else:
        yield from _open_clip_block(shapes, key, "text_model.encoder.layers.")


def open_clip_vision(shapes: Shapes) -> Sequence[NamedTensor] | None:
    """The vision half in OpenCLIP's layout, as Hugging Face names it."""
    if "transformer.resblocks.0.attn.in_proj_weight" not in shapes or "class_embedding" not in shapes:
        return None
    return [tensor for key in shapes for tensor in _from_open_clip_vision(shapes, key)]


def _from_open_clip_vision(shapes: Shapes, key: str) -> Iterator[NamedTensor]:
    if key in _OPEN_CLIP_VISION:
        yield NamedTensor("vision_model." + _OPEN_CLIP_VISION[key], key)
    elif key == "proj":
        yield NamedTensor("visual_projection.weight", key, transposed=True)
    else:
        yield from _open_clip_block(shapes, key, "vision_model.encoder.layers.")


def _open_clip_block(shapes: Shapes, key: str, layers: str) -> Iterator[NamedTensor]:
    """layers: what stands before the numbers of layers."""
    if match := re.match(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", key):
        layer, parameter = match.groups()
        width = shapes[key][0] // 3
        for number, name in enumerate(_PROJECTIONS):
            rows = (number * width, (number + 1) * width)
            yield NamedTensor(f"{layers}{layer}.self_attn.{name}.{parameter}", key, rows)
    elif match := re.match(r"transformer\.resblocks\.(\d+)\.([\w.]+)\.(weight|bias)$", key):
        layer, module, parameter = match.groups()
        yield NamedTensor(f"{layers}{layer}.{_OPEN_CLIP_LAYER.get(module, module)}.{parameter}", key)
    else:
        yield NamedTensor(key, key)


def clip_config(shapes: Shapes, *, quick_gelu: bool) -> ClipConfig:
    from loraloom.models.text.clip import ClipConfig

    vocabulary, width = shapes[CLIP_TOKENS]
    projection = shapes.get("text_projection.weight")
    return ClipConfig(
        vocabulary=vocabulary,
        positions=shapes["text_model.embeddings.position_embedding.weight"][0],
        width=width,
        layers=depth(shapes, "text_model.encoder.layers."),
        inner=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        quick_gelu=quick_gelu,
        projection=None if projection is None else projection[0],
    )


def clip_blueprint(prefix: str, shapes: Shapes, *, quick_gelu: bool) -> Blueprint:
    config = clip_config(shapes, quick_gelu=quick_gelu)

    def build() -> ClipText:
        from loraloom.models.text.clip import ClipText

        return ClipText(config)

    return Blueprint(asdict(config), build, placements(prefix, shapes), CLIP_UNUSED)


def clip_measure(shapes: Shapes) -> tuple[int, int]:
    return shapes[CLIP_TOKENS][-1], depth(shapes, "text_model.encoder.layers.")


def clip_tokenizer(weights: WeightSource) -> Tokenizer:
    from loraloom.models.text.vocabularies import clip_tokenizer as make

    del weights
    return make()


def placements(prefix: str, shapes: Shapes) -> Placements:
    """Each of the module's tensors from the native one of its own name."""
    return {name: Placement(prefix + name) for name in shapes}


def depth(shapes: Shapes, prefix: str) -> int:
    """The number of layers whose names go on from `prefix` with 0, 1, 2 …"""
    numbers = {int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"the layers {prefix}… are not numbered from 0 without gaps")
    return len(numbers)
