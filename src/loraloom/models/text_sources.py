"""Where files keep text encoders, and their tensors under native names ("clip_l.transformer.text_model.…").

Native names are Hugging Face's behind the role. OpenCLIP's layout (Ilharco et al. 2021) is read under the
same names: query, key and value are rows of one tensor there, and the projection lies transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from loraloom.errors import ModelFileError
from loraloom.models.handles import TextPart
from loraloom.models.recognition import looks_like
from loraloom.weights.source import Entry, Piece, WeightSource
from loraloom.weights.tensor_file import TensorFile

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


def checkpoint_parts(file: TensorFile, roles: tuple[str, ...]) -> tuple[TextPart, ...]:
    """The text encoders of these roles that an all-in-one file holds."""
    parts: list[TextPart] = []
    for role in roles:
        for prefix in CHECKPOINT_PREFIXES.get(role, ()):
            entries = dict(_native_entries(file, prefix, role))
            if entries:
                parts.append(TextPart(role, WeightSource(entries)))
                break
    return tuple(parts)


def file_parts(file: TensorFile, kind: str) -> tuple[TextPart, ...]:
    """The text encoders of a file: a single one, or those of a checkpoint. kind: the loader's `type`."""
    found = checkpoint_parts(file, tuple(CHECKPOINT_PREFIXES))
    if found:
        return found
    role = _role(file, kind)
    if role is None:
        raise ModelFileError(f"{file.path}: no text encoder that is known here: {looks_like(file.header)}")
    return (TextPart(role, WeightSource(dict(_native_entries(file, "", role)))),)


def _role(file: TensorFile, kind: str) -> str | None:
    """CLIP-L, H and bigG differ in width and depth; T5 in its names."""
    names = file.header.tensors
    if "encoder.block.0.layer.0.SelfAttention.q.weight" in names:
        return "t5xxl"
    for tokens, layer in (
        ("text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.{}.mlp.fc1.weight"),
        ("token_embedding.weight", "transformer.resblocks.{}.mlp.c_fc.weight"),
    ):
        if tokens not in names:
            continue
        width = names[tokens].shape[-1]
        depth = sum(layer.format(number) in names for number in range(64))
        if width == 1280 or depth > 30:
            return "clip_g"
        if width == 1024 or depth > 22:
            return "clip_h"
        is_second = kind == "sdxl" and ("text_projection.weight" in names or "text_projection" in names)
        return "clip_g" if is_second else "clip_l"
    return None


def _native_entries(file: TensorFile, prefix: str, role: str) -> Iterator[tuple[str, Entry]]:
    """The tensors under a prefix as native names; empty when they are not an encoder."""
    names = [name for name in file.header.tensors if name.startswith(prefix)]
    bare = {name[len(prefix) :] for name in names}
    start = f"{role}.transformer."
    if "token_embedding.weight" in bare:
        for name in names:
            yield from _from_open_clip(file, name, name[len(prefix) :], start)
    elif bare & _TOKENS["t5xxl" if role == "t5xxl" else "clip"]:
        for name in names:
            yield start + name[len(prefix) :], (Piece(file, name),)
    elif "embeddings.token_embedding.weight" in bare:  # the oldest checkpoints
        for name in names:
            yield f"{start}text_model.{name[len(prefix) :]}", (Piece(file, name),)


def _from_open_clip(file: TensorFile, key: str, bare: str, start: str) -> Iterator[tuple[str, Entry]]:
    if bare in _OPEN_CLIP:
        yield start + _OPEN_CLIP[bare], (Piece(file, key),)
    elif bare == "text_projection":
        yield f"{start}text_projection.weight", (Piece(file, key, transposed=True),)
    elif bare == "text_projection.weight":
        yield f"{start}text_projection.weight", (Piece(file, key),)
    elif match := re.match(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", bare):
        layer, parameter = match.groups()
        width = file.header.tensors[key].shape[0] // 3
        for number, name in enumerate(_PROJECTIONS):
            native = f"{start}text_model.encoder.layers.{layer}.self_attn.{name}.{parameter}"
            yield native, (Piece(file, key, (number * width, (number + 1) * width)),)
    elif match := re.match(r"transformer\.resblocks\.(\d+)\.([\w.]+)\.(weight|bias)$", bare):
        layer, module, parameter = match.groups()
        name = _OPEN_CLIP_LAYER.get(module, module)
        yield f"{start}text_model.encoder.layers.{layer}.{name}.{parameter}", (Piece(file, key),)
    else:
        yield start + bare, (Piece(file, key),)
