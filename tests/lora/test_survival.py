"""What requantising loses, and that the ways that are taken lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import hashes_of
from loraloom.lora.load import load_lora
from loraloom.lora.receipt import Survival
from loraloom.weights.formats import formats
from loraloom.weights.packed import Packed, narrowed, packed_as

from .test_load import random


def stored(kind: str, weight: torch.Tensor) -> Packed:
    if kind == "plain fp8":
        return narrowed(weight.to(torch.float8_e4m3fn))
    if kind == "gguf":
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        blocks = torch.from_numpy(quantize(weight.numpy(), GGMLQuantizationType.Q8_0))
        return Packed.of("gguf", {"weight": blocks}, {"format": "Q8_0"}, tuple(weight.shape))
    name, _, option = kind.partition(":")
    found = packed_as(formats()[name], weight, option)
    assert found is not None
    return found


KINDS = (
    "plain fp8",
    "fp8",
    "fp8:e5m2",
    "int8",
    "int8:convrot64",
    "convrot_w4a4:64",
    "nvfp4",
    "mxfp8",
    "gguf",
)


@pytest.mark.parametrize("kind", KINDS)
def test_weak_changes_are_lost_and_strong_ones_survive(kind: str) -> None:
    packed = stored(kind, random(64, 64))
    weight, delta = packed.widened(torch.float32), random(64, 64, seed=1)
    losses: list[float] = []
    for scale in (1e-5, 1e-2, 100.0):
        after = packed.rounded(weight + scale * delta)
        assert after is not None
        losses.append(float((after - weight - scale * delta).norm() / (scale * delta).norm()))
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.9 and losses[2] < 0.2
    again = packed.rounded(weight)
    assert again is not None
    torch.testing.assert_close(
        again, weight, rtol=0.1, atol=0.1
    )  # what is stored stays, to a scale's rounding


def survival(tmp_path: Path, tensors: dict[str, torch.Tensor], packed: Packed | None) -> tuple[Survival, ...]:
    save_file(tensors, tmp_path / "a.safetensors")
    component = Component(
        "flux",
        {"a.weight": (96, 64)},
        read=lambda _: random(96, 64) if packed is None else packed.widened(torch.float32),
        quantised=lambda _: packed,
    )
    path = tmp_path / "a.safetensors"
    receipt = load_lora(read_lora(path), {"model": component}).measured(hashes_of(path))
    for way in receipt.survival:
        assert str(way) in receipt.summary()
    return receipt.survival


@pytest.mark.parametrize("kind", KINDS)
def test_the_receipt_says_that_a_lora_runs_beside_and_what_requantising_would_lose(
    tmp_path: Path, kind: str
) -> None:
    packed = stored(kind, random(96, 64))
    up, down = 0.02 * random(96, 4, seed=1), 0.02 * random(4, 64, seed=2)
    tensors = {"diffusion_model.a.lora_up.weight": up, "diffusion_model.a.lora_down.weight": down}
    (way,) = survival(tmp_path, tensors, packed)
    assert (way.beside, way.merged, way.weights) == (1, 0, 1)
    assert way.lost is not None and way.lost > 0.4
    assert "1 beside" in str(way) and "requantising would lose" in str(way)


def test_the_receipt_says_which_weights_are_widened(tmp_path: Path) -> None:
    (way,) = survival(tmp_path, {"diffusion_model.a.diff": random(96, 64)}, stored("int8", random(96, 64)))
    assert (way.beside, way.merged, way.lost) == (0, 1, None)
    assert str(way) == "1 int8_tensorwise weights widened"


def test_wide_bases_lose_nothing(tmp_path: Path) -> None:
    assert survival(tmp_path, {"diffusion_model.a.diff": random(96, 64)}, None) == ()
