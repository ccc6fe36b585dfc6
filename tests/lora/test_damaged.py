"""Damaged and foreign files: every one has a clear outcome, none is ignored in silence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import read_lora
from loraloom.lora.load import LoadedLora, load_lora
from loraloom.weights.patch import Target

from .test_load import FLUX, random

SD = Component(
    "sd15",
    {
        "input_blocks.1.1.proj_in.weight": (8, 6),
        "middle_block.1.proj_in.weight": (8, 6),
        "middle_block.1.proj_in.bias": (8,),
    },
    {
        "down_blocks.0.attentions.0.proj_in": Target("input_blocks.1.1.proj_in.weight"),
        "mid_block.attentions.0.proj_in": Target("middle_block.1.proj_in.weight"),
    },
)
GOOD, OTHER = "lora_unet_down_blocks_0_attentions_0_proj_in", "lora_unet_mid_block_attentions_0_proj_in"

Tensors = dict[str, Tensor]


def pair(name: str = GOOD, out: int = 8, inner: int = 6, rank: int = 2, alpha: float | None = 2.0) -> Tensors:
    tensors = {
        f"{name}.lora_up.weight": random(out, rank),
        f"{name}.lora_down.weight": random(rank, inner, seed=1),
    }
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def header(entries: str | Mapping[str, Any], data: bytes = b"") -> bytes:
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


UP, DOWN = GOOD + ".lora_up.weight", GOOD + ".lora_down.weight"

REFUSED_BYTES: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "cut in its length": (lambda: save(pair())[:5], "cut short"),
    "cut in its header": (lambda: save(pair())[:60], "cut short"),
    "cut in its data": (lambda: save(pair())[:-10], "cut short"),
    "appended to": (lambda: save(pair()) + b"xx", "too many"),
    "Git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "web page": (lambda: b"<!DOCTYPE html><html>login</html>", "web page"),
    "pickle": (lambda: b"\x80\x02}q\x00.", "pickle"),
    "zip": (lambda: b"PK\x03\x04" + b"\0" * 40, "zip"),
    "gguf": (lambda: b"GGUF" + b"\0" * 40, "GGUF"),
    "compressed": (lambda: b"\x1f\x8b" + b"\0" * 40, "compressed"),
    "JSON": (lambda: b'{"lora": "no"}', "JSON"),
    "absurd header": (lambda: struct.pack("<Q", 1 << 60) + b"{}", "header claims"),
    "broken header": (lambda: header("{not json"), "damaged header"),
    "deep header": (lambda: header("[" * 100_000 + "]" * 100_000), "damaged header"),
    "duplicate names": (
        lambda: header(
            f'{{"{UP}": {json.dumps(entry(0, 8))}, "{UP}": {json.dumps(entry(8, 16))}}}', b"\0" * 16
        ),
        "occurs twice",
    ),
    "unsafe name": (lambda: header({"../../etc.lora_up.weight": entry(0, 8)}, b"\0" * 8), "unsafe"),
    "control characters": (lambda: header({"a\x1b[2J.lora_up.weight": entry(0, 8)}, b"\0" * 8), "unsafe"),
    "overlap": (lambda: header({UP: entry(0, 8), DOWN: entry(4, 12)}, b"\0" * 12), "overlaps"),
    "hole": (lambda: header({UP: entry(0, 8), DOWN: entry(12, 20)}, b"\0" * 20), "hole"),
    "unknown type": (lambda: header({UP: entry(0, 8, "F3")}, b"\0" * 8), "unknown data type"),
    "wrong size": (lambda: header({UP: entry(0, 8, shape=(3,))}, b"\0" * 8), "needs 12 bytes"),
    "no tensors": (lambda: save({}), "no tensors"),
}
"""Files that are refused as they are: bytes → what the message says."""

REFUSED: Mapping[str, tuple[Callable[[], Tensors], str]] = {
    "checkpoint": (lambda: {"model.diffusion_model.out.2.weight": random(2, 2)}, "whole checkpoint"),
    "embedding": (lambda: {"emb_params": random(2, 768)}, "embedding"),
    "something else": (lambda: {"encoder.weight": random(2, 2)}, "none of its 1 tensors"),
    "Flux on SD1.5": (lambda: pair("lora_unet_double_blocks_0_img_attn_qkv"), r"this is a Flux\.1 LoRA"),
    "SDXL on SD1.5": (
        lambda: pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", inner=2048),
        "this is a Stable Diffusion XL LoRA",
    ),
    "Wan on SD1.5": (lambda: pair("diffusion_model.blocks.0.self_attn.q"), "this is a Wan LoRA"),
    "only text encoders": (lambda: pair("lora_te_text_model_encoder_layers_0_mlp_fc1"), "text encoders only"),
    "only alphas": (lambda: {f"{GOOD}.alpha": torch.tensor(1.0)}, "holds only alpha"),
    "up without down": (lambda: {UP: random(8, 2)}, "up without down"),
    "ranks differ": (lambda: {**pair(), DOWN: random(3, 6)}, "rank 2 of the up factor is not rank 3"),
    "wrong width": (lambda: pair(inner=7), "made for a weight of 8×7, this one is 8×6"),
    "factors exchanged": (lambda: {UP: random(2, 6), DOWN: random(8, 2)}, "rank 6 of the up"),
    "rank zero": (lambda: {UP: torch.zeros(8, 0), DOWN: torch.zeros(0, 6)}, "no matrices"),
    "NaN": (lambda: {**pair(), UP: torch.full((8, 2), float("nan"))}, "NaN or infinity"),
    "infinity": (lambda: {**pair(), DOWN: torch.full((2, 6), float("inf"))}, "NaN or infinity"),
    "NaN alpha": (lambda: pair(alpha=float("nan")), "NaN|not a number"),
    "half a LoHa": (
        lambda: {f"{GOOD}.hada_w1_a": random(8, 2), f"{GOOD}.hada_w1_b": random(2, 6)},
        "no complete",
    ),
    "LoKr of another size": (
        lambda: {f"{GOOD}.lokr_w1": random(2, 2), f"{GOOD}.lokr_w2": random(4, 4)},
        "made for a weight of 8×8",
    ),
    "DoRA of another size": (lambda: {**pair(), f"{GOOD}.dora_scale": random(5, 1)}, "DoRA magnitude has 5"),
    "oblong rotations": (lambda: {f"{GOOD}.oft_blocks": random(2, 4, 3)}, "not square"),
    "difference of another size": (lambda: {f"{GOOD}.diff": random(4, 6)}, "made for 4×6"),
    "bias out of range": (
        lambda: {
            f"{OTHER}.bias_indices": torch.tensor([[9]]),
            f"{OTHER}.bias_values": random(1),
            f"{OTHER}.bias_size": torch.tensor([8]),
        },
        "entry 9 of 8",
    ),
}
"""Readable files of which nothing can be used: tensors → what the message says."""

WARNED: Mapping[str, tuple[Callable[[], Tensors], str]] = {
    "half the keys": (lambda: {**pair(), OTHER + ".lora_up.weight": random(8, 2)}, "only 1 of 2 modules"),
    "one NaN module": (lambda: {**pair(), **pair(OTHER), UP: random(8, 2) / 0}, "NaN or infinity"),
    "strange tensors": (lambda: {**pair(), "what.is.this": random(1)}, "no known kind"),
    "spelled twice": (
        lambda: {**pair(), **pair("unet.down_blocks.0.attentions.0.proj_in")},
        "spelled twice",
    ),
    "second adapter": (
        lambda: {
            f"unet.mid_block.attentions.0.proj_in.lora_{side}.{name}.weight": random(*shape)
            for name in ("default", "other")
            for side, shape in (("A", (2, 6)), ("B", (8, 2)))
        },
        "second adapter",
    ),
    "alpha zero": (lambda: pair(alpha=0.0), "alpha is 0"),
    "all zero": (lambda: {**pair(), UP: torch.zeros(8, 2)}, "all its changes are zero"),
    "bias that the base lacks": (lambda: {**pair(), f"{GOOD}.diff_b": random(8)}, "no bias here"),
}
"""Files that are used in part, or as they were meant: tensors → what the warning says."""


def _load(path: Path) -> LoadedLora:
    components: dict[ComponentName, Component] = {"model": SD}
    return load_lora(read_lora(path), components)


def test_there_are_forty() -> None:
    assert len(REFUSED_BYTES) + len(REFUSED) + len(WARNED) >= 40


@pytest.mark.parametrize("case", REFUSED_BYTES)
def test_refused_unread(case: str, tmp_path: Path) -> None:
    make, message = REFUSED_BYTES[case]
    path = tmp_path / "lora.safetensors"
    path.write_bytes(make())
    with pytest.raises(InputError, match=message) as caught:
        _load(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    save_file(make(), tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=message):
        _load(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("case", WARNED)
def test_warned(case: str, tmp_path: Path) -> None:
    make, message = WARNED[case]
    tensors = make()
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = _load(tmp_path / "lora.safetensors")
    receipt = lora.receipt
    assert any(message in warning for warning in receipt.warnings), receipt.warnings
    for patches in lora.model.patches().values():
        changed = torch.zeros(8, 6)
        for patch in patches:
            changed = patch.apply(changed, 1.0)
        assert torch.isfinite(changed).all()


def test_stored_in_eight_bits_is_no_damage(tmp_path: Path) -> None:
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in pair(alpha=None).items()},
        tmp_path / "a.safetensors",
    )
    assert _load(tmp_path / "a.safetensors").receipt.complete


def test_meaningless_metadata_is_no_damage(tmp_path: Path) -> None:
    metadata = {
        "ss_tag_frequency": "{broken", "ss_dataset_dirs": "[[[", "ss_network_args": "\x00", 
        "lora_adapter_metadata": "7",
        "modelspec.trigger_phrase": " , ,",
        "software": "{", "ss_training_started_at": "1e999",
    }  # fmt: skip
    save_file(pair(), tmp_path / "a.safetensors", metadata)
    receipt = _load(tmp_path / "a.safetensors").receipt
    assert receipt.complete
    assert receipt.triggers == ()


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without adapter_model"):
        _load(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match="pickle"):
        _load(tmp_path)


def test_broken_peft_config(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(InputError, match="not a PEFT config"):
        _load(tmp_path)


def test_wrong_base_both_ways(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / "a.safetensors", {"ss_base_model_version": "sd_v1"})
    with pytest.raises(InputError, match=r"Stable Diffusion 1\.5 LoRA.*Flux\.1"):
        load_lora(read_lora(tmp_path / "a.safetensors"), {"model": FLUX})
