"""Where files keep text encoders, and the native names ("clip_l.transformer.text_model.…") of their tensors.

Native names are Hugging Face's behind the role. OpenCLIP's layout (Ilharco et al. 2021) is read under the
same names: query, key and value are rows of one tensor there, and the projection lies transposed. Nothing
here imports torch: `lora inspect --base` reads headers with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loraloom.weights.header import Header
from loraloom.weights.patch import Rows

CHECKPOINT_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "clip_l": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.clip_l.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "clip_h": ("cond_stage_model.model.", "text_encoders.clip_h.transformer."),
    "clip_g": (
        "conditioner.embedders.1.model.",
        "conditioner.embedders.0.model.",
        "text_encoders.clip_g.transformer.",
    ),
    "t5xxl": ("text_encoders.t5xxl.transformer.",),
}
"""Role → prefixes under which checkpoints keep that encoder."""

_OPEN_CLIP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_TOKENS = {
    "clip": {"text_model.embeddings.token_embedding.weight"},
    "t5xxl": {"shared.weight", "encoder.embed_tokens.weight"},
}
"""Kind of encoder → the names of Hugging Face's layout that hold its token vectors."""

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor of a file, or rows of it, under its native name."""

    native: str
    key: str
    rows: Rows = None
    transposed: bool = False


def native_tensors(header: Header, prefix: str, role: str) -> Iterator[NamedTensor]:
    """The tensors under a prefix by native name; none when they are not an encoder."""
    names = [name for name in header.tensors if name.startswith(prefix)]
    bare = {name[len(prefix) :] for name in names}
    start = f"{role}.transformer."
    if "token_embedding.weight" in bare:
        for name in names:
            yield from _from_open_clip(header, name, name[len(prefix) :], start)
    elif bare & _TOKENS["t5xxl" if role == "t5xxl" else "clip"]:
        for name in names:
            yield NamedTensor(start + name[len(prefix) :], name)
    elif "embeddings.token_embedding.weight" in bare:  # the oldest checkpoints
        for name in names:
            yield NamedTensor(f"{start}text_model.{name[len(prefix) :]}", name)


def checkpoint_shapes(header: Header, roles: tuple[str, ...]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Role → native name → shape, of the text encoders that an all-in-one file holds."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for role in roles:
        for prefix in CHECKPOINT_PREFIXES.get(role, ()):
            shapes = {
                tensor.native: _shape(header, tensor) for tensor in native_tensors(header, prefix, role)
            }
            if shapes:
                found[role] = shapes
                break
    return found


def _shape(header: Header, tensor: NamedTensor) -> tuple[int, ...]:
    shape = header.tensors[tensor.key].shape
    shape = shape[::-1] if tensor.transposed else shape
    return shape if tensor.rows is None else (tensor.rows[1] - tensor.rows[0], *shape[1:])


def _from_open_clip(header: Header, key: str, bare: str, start: str) -> Iterator[NamedTensor]:
    if bare in _OPEN_CLIP:
        yield NamedTensor(start + _OPEN_CLIP[bare], key)
    elif bare == "text_projection":
        yield NamedTensor(f"{start}text_projection.weight", key, transposed=True)
    elif bare == "text_projection.weight":
        yield NamedTensor(f"{start}text_projection.weight", key)
    elif match := re.match(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", bare):
        layer, parameter = match.groups()
        width = header.tensors[key].shape[0] // 3
        for number, name in enumerate(_PROJECTIONS):
            native = f"{start}text_model.encoder.layers.{layer}.self_attn.{name}.{parameter}"
            yield NamedTensor(native, key, (number * width, (number + 1) * width))
    elif match := re.match(r"transformer\.resblocks\.(\d+)\.([\w.]+)\.(weight|bias)$", bare):
        layer, module, parameter = match.groups()
        name = _OPEN_CLIP_LAYER.get(module, module)
        yield NamedTensor(f"{start}text_model.encoder.layers.{layer}.{name}.{parameter}", key)
    else:
        yield NamedTensor(start + bare, key)
