"""Where files keep text encoders, as weight sources under native names (see `text_names`)."""

from __future__ import annotations

from loraloom.errors import ModelFileError
from loraloom.models.handles import TextPart
from loraloom.models.recognition import looks_like
from loraloom.models.text_names import CHECKPOINT_PREFIXES, native_tensors
from loraloom.weights.source import Entry, Piece, WeightSource
from loraloom.weights.tensor_file import TensorFile


def checkpoint_parts(file: TensorFile, roles: tuple[str, ...]) -> tuple[TextPart, ...]:
    """The text encoders of these roles that an all-in-one file holds."""
    parts: list[TextPart] = []
    for role in roles:
        for prefix in CHECKPOINT_PREFIXES.get(role, ()):
            entries = _native_entries(file, prefix, role)
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
    return (TextPart(role, WeightSource(_native_entries(file, "", role))),)


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


def _native_entries(file: TensorFile, prefix: str, role: str) -> dict[str, Entry]:
    """The tensors under a prefix by native name; empty when they are not an encoder."""
    return {
        tensor.native: (Piece(file, tensor.key, tensor.rows, tensor.transposed),)
        for tensor in native_tensors(file.header, prefix, role)
    }
