"""Narrow models with some of their matrices quantised, in the files that ComfyUI reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from loraloom.weights.formats import formats
from tests.narrow_models import Weights
from tests.weights.test_marks import mark


def write_quantised(path: Path, weights: Weights, chosen: Sequence[str], to: str, option: str = "") -> Path:
    """chosen: parts of the names of those that are quantised, all others stay float32."""
    tensors: dict[str, Tensor] = {}
    for name in weights.known:
        value, stem = weights.value(name), name.removesuffix(".weight")
        is_chosen = value.dim() == 2 and name != stem and any(part in name for part in chosen)
        made = formats()[to].pack(value, option) if is_chosen else None
        if made is None:
            tensors[name] = value
            continue
        parts, said = made
        tensors |= {f"{stem}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        tensors[f"{stem}.comfy_quant"] = mark(**said)
    save_file(tensors, path)
    return path
