"""Narrow text encoders with the very weights that the figures of `data/families` were measured on.

Names, head sizes and numbers of layers are the real ones, widths are not. A value is the tensor's own stream
of normal numbers (seeded by the file's tag and the tensor's name), times a deviation, plus a mean.

    path = narrow.write_qwen3_4b(tmp_path / "text_encoders" / "qwen_3_4b.safetensors")
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH = 64
HEAD = 128


def normals(tag: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor's own stream of normal numbers, float32."""
    seed = int.from_bytes(hashlib.sha256(f"{tag}\0{name}".encode()).digest()[:8], "little")
    stream = np.random.Generator(np.random.SFC64(seed))
    return stream.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)


@dataclass(slots=True)
class Weights:
    """Tensors by name, each of a shape, deviation and mean."""

    tag: str
    known: dict[str, tuple[tuple[int, ...], float, float]] = field(
        default_factory=lambda: dict[str, tuple[tuple[int, ...], float, float]]()
    )

    def put(self, name: str, shape: tuple[int, ...], deviation: float = 1.0, mean: float = 0.0) -> None:
        self.known[name] = shape, deviation, mean

    def linear(self, name: str, inputs: int, outputs: int, gain: float = 1.0, bias: bool = True) -> None:
        self.put(f"{name}.weight", (outputs, inputs), gain / math.sqrt(inputs))
        if bias:
            self.put(f"{name}.bias", (outputs,), 0.02)

    def norm(self, name: str, width: int, bias: bool = False, mean: float = 1.0) -> None:
        self.put(f"{name}.weight", (width,), 0.1, mean)
        if bias:
            self.put(f"{name}.bias", (width,), 0.05)

    def value(self, name: str) -> Tensor:
        shape, deviation, mean = self.known[name]
        return torch.from_numpy(normals(self.tag, name, shape) * np.float32(deviation) + np.float32(mean))

    def write(self, path: Path, others: Mapping[str, Tensor] | None = None) -> Path:
        """A safetensors file in float32, with further tensors as they are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: self.value(name) for name in self.known} | dict(others or {}), path)
        return path


def language_model(
    tag: str,
    layers: int,
    *,
    vocabulary: int = 151936,
    start: str = "model.",
    width: int = WIDTH,
    inner: int = 128,
    bias: bool = False,
    head_norms: bool = True,
    last_norm: bool = True,
) -> Weights:
    """Two heads for queries and one for keys and values, each 128 wide."""
    made = Weights(tag)
    made.put(f"{start}embed_tokens.weight", (vocabulary, width), 0.5)
    for number in range(layers):
        layer = f"{start}layers.{number}."
        made.norm(f"{layer}input_layernorm", width)
        made.norm(f"{layer}post_attention_layernorm", width)
        for name, heads in (("q_proj", 2), ("k_proj", 1), ("v_proj", 1)):
            made.linear(f"{layer}self_attn.{name}", width, heads * HEAD, bias=bias)
        made.linear(f"{layer}self_attn.o_proj", 2 * HEAD, width, gain=0.5, bias=False)
        if head_norms:
            made.norm(f"{layer}self_attn.q_norm", HEAD, mean=1.2)
            made.norm(f"{layer}self_attn.k_norm", HEAD, mean=1.2)
        made.linear(f"{layer}mlp.gate_proj", width, inner, bias=False)
        made.linear(f"{layer}mlp.up_proj", width, inner, bias=False)
        made.linear(f"{layer}mlp.down_proj", inner, width, gain=0.5, bias=False)
    if last_norm:
        made.norm(f"{start}norm", width)
    return made


def write_qwen3_4b(path: Path) -> Path:
    return language_model("fam.qwen3_4b", 36).write(path)


def write_qwen3_06b(path: Path) -> Path:
    return language_model("fam.qwen3_06b", 28).write(path)
