"""Text encoders from GGUF files: llama.cpp's names and order, and a picture encoder in a file beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tests import narrow_models as narrow
from tests.conftest import NarrowFile
from tests.models.text import figures
from tests.weights.gguf_writer import write_gguf
from torch import Tensor

from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt
from loraloom.models.text.templates import PICTURE

NOWHERE = ModelFolders(())

LLAMA = {
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}
TOWER = {
    "visual.blocks.": "v.blk.",
    "visual.merger.ln_q": "v.post_ln",
    "visual.merger.mlp.": "mm.",
    "visual.patch_embed.proj": "v.patch_embd",
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.proj": "attn_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
T5 = {
    "encoder.block.": "enc.blk.",
    "encoder.final_layer_norm": "enc.output_norm",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.0.layer_norm": "attn_norm",
    "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
    "shared": "token_embd",
}


def renamed(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def stored(values: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """Matrices in half precision, vectors whole."""
    wide = values.dim() < 2
    data = values.float().numpy() if wide else values.half().numpy()
    return "F32" if wide else "F16", tuple(values.shape), np.ascontiguousarray(data).tobytes()


def in_parts(name: str, values: Tensor) -> dict[str, Tensor]:
    """A tensor of the tower as llama.cpp keeps it."""
    if ".attn.qkv." in name:
        return {
            name.replace("attn.qkv", f"attn_{part}"): rows
            for part, rows in zip("qkv", values.chunk(3), strict=True)
        }
    if "patch_embed" in name:
        return {name: values[:, :, 0], f"{name}.1": values[:, :, 1]}
    return {name: values}


def write_model(path: Path, tensors: dict[str, Tensor], table: dict[str, str], architecture: str) -> Path:
    named = {renamed(name, table): stored(values) for name, values in tensors.items()}
    return write_gguf(path, named, general__architecture=architecture)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_qwen_vl_sees_with_the_tower_beside_it(narrow_file: NarrowFile, tmp_path: Path) -> None:
    plain = narrow_file(narrow.write_qwen25vl)
    tensors = load_file(plain)
    language = {name: values for name, values in tensors.items() if not name.startswith("visual.")}
    path = write_model(tmp_path / "Qwen2.5-VL-7B-Q8_0.gguf", language, LLAMA, "qwen2vl")
    tower = {
        part: values
        for name, whole in tensors.items()
        if name.startswith("visual.")
        for part, values in in_parts(name, whole).items()
    }
    write_model(tmp_path / "Qwen2.5-VL-7B-mmproj-F16.gguf", tower, TOWER, "clip")
    shown = [torch.from_numpy(figures.measured()["qwen_edit_edit|pic|A"])]
    memory, text = Memory("cpu", "fp32"), f"{PICTURE}make it winter"
    (found,), _ = encode_prompt(memory, open_text_encoders((path,), "qwen_image"), text, NOWHERE, shown)
    assert figures.distance(found.context, "qwen_edit_edit|vl_one") < 5e-3


def test_t5_and_qwen3_say_the_same_as_from_safetensors(narrow_file: NarrowFile, tmp_path: Path) -> None:
    memory = Memory("cpu", "fp32")
    for write, table, architecture, kind in (
        (narrow.write_t5, T5, "t5encoder", "chroma"),
        (narrow.write_qwen3_4b, LLAMA, "qwen3", "lumina2"),
    ):
        plain = narrow_file(write)
        path = write_model(tmp_path / f"{architecture}.gguf", load_file(plain), table, architecture)
        found, wanted = (
            encode_prompt(memory, open_text_encoders((one,), kind), "a red fox", NOWHERE)[0][0].context
            for one in (path, plain)
        )
        assert found.shape == wanted.shape and distance(found, wanted) < 5e-3
