"""Narrow text encoders with the very weights that the figures of `data/families` were measured on.

Names, head sizes and numbers of layers are the real ones, widths are not. A value is the tensor's own stream
of normal numbers (seeded by the file's tag and the tensor's name), times a deviation, plus a mean.

    path = narrow.write_qwen3_4b(tmp_path / "text_encoders" / "qwen_3_4b.safetensors")
"""

from __future__ import annotations

import gzip
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Writer: TypeAlias = Callable[[Path], Path]

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


def write_mistral(path: Path) -> Path:
    """The first 30 layers, without the final norm, with a toy tokenizer."""
    made = language_model("fam.mistral", 30, vocabulary=131072, head_norms=False, last_norm=False)
    return made.write(path, {"tekken_model": toy("tekken.json.gz")})


def qwen25vl(layers: int, vocabulary: int = 152064) -> Weights:
    """As wide as its two heads together, unlike the others."""
    made = language_model(
        "fam.qwen25vl", layers, vocabulary=vocabulary, width=256, inner=256, bias=True, head_norms=False
    )
    tower, width, inner = "visual.", 64, 96
    made.put(f"{tower}patch_embed.proj.weight", (width, 3, 2, 14, 14), 1 / math.sqrt(3 * 2 * 14 * 14))
    for number in range(8):
        block = f"{tower}blocks.{number}."
        made.norm(f"{block}norm1", width)
        made.norm(f"{block}norm2", width)
        made.linear(f"{block}attn.qkv", width, 3 * width, gain=1.2)
        made.linear(f"{block}attn.proj", width, width, gain=0.5)
        made.linear(f"{block}mlp.gate_proj", width, inner)
        made.linear(f"{block}mlp.up_proj", width, inner)
        made.linear(f"{block}mlp.down_proj", inner, width, gain=0.5)
    made.norm(f"{tower}merger.ln_q", width)
    made.linear(f"{tower}merger.mlp.0", 4 * width, 4 * width)
    made.linear(f"{tower}merger.mlp.2", 4 * width, 256)
    return made


def write_qwen25vl(path: Path) -> Path:
    return qwen25vl(6).write(path)


def qwen3vl(tag: str, layers: int = 36, vocabulary: int = 151936) -> Weights:
    made = language_model(tag, layers, vocabulary=vocabulary, start="model.language_model.")
    tower, width, inner = "model.visual.", WIDTH, 96
    made.put(f"{tower}patch_embed.proj.weight", (width, 3, 2, 16, 16), 1 / math.sqrt(3 * 2 * 16 * 16))
    made.put(f"{tower}patch_embed.proj.bias", (width,), 0.02)
    made.put(f"{tower}pos_embed.weight", (2304, width), 0.3)
    for number in range(4):
        block = f"{tower}blocks.{number}."
        made.norm(f"{block}norm1", width, bias=True)
        made.norm(f"{block}norm2", width, bias=True)
        made.linear(f"{block}attn.qkv", width, 3 * width, gain=1.2)
        made.linear(f"{block}attn.proj", width, width, gain=0.5)
        made.linear(f"{block}mlp.linear_fc1", width, inner)
        made.linear(f"{block}mlp.linear_fc2", inner, width, gain=0.5)
    made.norm(f"{tower}merger.norm", width, bias=True)
    made.linear(f"{tower}merger.linear_fc1", 4 * width, 4 * width)
    made.linear(f"{tower}merger.linear_fc2", 4 * width, WIDTH)
    for number in range(3):
        merger = f"{tower}deepstack_merger_list.{number}."
        made.norm(f"{merger}norm", 4 * width, bias=True)
        made.linear(f"{merger}linear_fc1", 4 * width, 4 * width)
        made.linear(f"{merger}linear_fc2", 4 * width, WIDTH, gain=0.5)
    return made


def write_qwen3vl_4b(path: Path) -> Path:
    return qwen3vl("fam.qwen3vl_4b").write(path)


def write_qwen3vl_8b(path: Path) -> Path:
    return qwen3vl("fam.qwen3vl_8b").write(path)


def gemma2(layers: int, vocabulary: int = 256000) -> Weights:
    """Norms as stored, without the 1 that is added to them."""
    made, width, head, inner = Weights("fam.gemma2"), WIDTH, 256, 128
    made.put("model.embed_tokens.weight", (vocabulary, width), 0.06)
    for number in range(layers):
        layer = f"model.layers.{number}."
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            made.norm(f"{layer}{name}_layernorm", width, mean=-0.6 if name.startswith("post") else 0.0)
        for name, heads in (("q_proj", 2), ("k_proj", 1), ("v_proj", 1)):
            made.linear(f"{layer}self_attn.{name}", width, heads * head, bias=False)
        made.linear(f"{layer}self_attn.o_proj", 2 * head, width, bias=False)
        made.linear(f"{layer}mlp.gate_proj", width, inner, bias=False)
        made.linear(f"{layer}mlp.up_proj", width, inner, bias=False)
        made.linear(f"{layer}mlp.down_proj", inner, width, bias=False)
    made.norm("model.norm", width, mean=0.0)
    return made


def write_gemma2(path: Path) -> Path:
    return gemma2(26).write(path, {"spiece_model": toy("sentencepiece.model.gz")})


def toy(name: str) -> Tensor:
    """The bytes of a small tokenizer."""
    packed = (Path(__file__).parent / "data/families" / name).read_bytes()
    return torch.frombuffer(bytearray(gzip.decompress(packed)), dtype=torch.uint8)


def clip(tag: str, layers: int) -> Weights:
    made, start, width = Weights(tag), "text_model.", 128
    made.put(f"{start}embeddings.position_embedding.weight", (77, width), 0.2)
    made.put(f"{start}embeddings.token_embedding.weight", (49408, width), 0.5)
    for number in range(layers):
        layer = f"{start}encoder.layers.{number}."
        made.norm(f"{layer}layer_norm1", width, bias=True)
        made.norm(f"{layer}layer_norm2", width, bias=True)
        made.linear(f"{layer}mlp.fc1", width, 2 * width)
        made.linear(f"{layer}mlp.fc2", 2 * width, width, gain=0.5)
        for name, gain in (("k_proj", 1.3), ("out_proj", 0.5), ("q_proj", 1.3), ("v_proj", 1.0)):
            made.linear(f"{layer}self_attn.{name}", width, width, gain=gain)
    made.norm(f"{start}final_layer_norm", width, bias=True)
    made.put("text_projection.weight", (width, width), 1 / math.sqrt(width))
    return made


def write_clip_l(path: Path) -> Path:
    return clip("fam.clip_l", 3).write(path)


def write_clip_g(path: Path) -> Path:
    return clip("fam.clip_g", 32).write(path)


def t5(tag: str, width: int, heads: int) -> Weights:
    made, inner = Weights(tag), 128
    made.put("shared.weight", (32128, width))
    for number in range(24):
        layer = f"encoder.block.{number}.layer."
        for name, gain in (("k", 1.0), ("q", 0.3), ("v", 1.0), ("o", 0.4)):
            made.linear(f"{layer}0.SelfAttention.{name}", width, width, gain=gain, bias=False)
        if number == 0:
            made.put(f"{layer}0.SelfAttention.relative_attention_bias.weight", (32, heads), 0.5)
        made.norm(f"{layer}0.layer_norm", width)
        made.linear(f"{layer}1.DenseReluDense.wi_0", width, inner, bias=False)
        made.linear(f"{layer}1.DenseReluDense.wi_1", width, inner, bias=False)
        made.linear(f"{layer}1.DenseReluDense.wo", inner, width, gain=0.4, bias=False)
        made.norm(f"{layer}1.layer_norm", width)
    made.norm("encoder.final_layer_norm", width)
    return made


def write_t5(path: Path) -> Path:
    return t5("fam.t5xxl", 64, 4).write(path)


def write_wide_t5(path: Path) -> Path:
    """320 wide, which stands for the real 4096."""
    return t5("fam.t5xxl_320", 320, 5).write(path)
