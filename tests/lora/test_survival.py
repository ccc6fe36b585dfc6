"""What merging into 8 bits loses, and that the unmerged form loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import load_lora
from loraloom.lora.survival import loss_of, quantise

from .test_load import random


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_weak_changes_are_lost_and_strong_ones_survive(storage: torch.dtype) -> None:
    weight = quantise(random(64, 64), storage)
    delta = random(64, 64, seed=1)
    losses = [loss_of(weight, scale * delta, storage) for scale in (1e-5, 1e-2, 1.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.9
    assert losses[2] < 0.2
    assert loss_of(weight, torch.zeros(64, 64), storage) == 0


def test_the_receipt_says_what_merging_would_lose(tmp_path: Path) -> None:
    weight = random(96, 32).to(torch.float8_e4m3fn)
    up, down = 0.02 * random(96, 4, seed=1), 0.02 * random(4, 32, seed=2)
    tensors = {"diffusion_model.a.lora_up.weight": up, "diffusion_model.a.lora_down.weight": down}
    save_file(tensors, tmp_path / "a.safetensors")
    component = Component("flux", {"a.weight": (96, 32)}, read=lambda _: weight)
    receipt = load_lora(read_lora(tmp_path / "a.safetensors"), {"model": component}).receipt
    (loss,) = receipt.survival
    assert loss.storage == "float8_e4m3fn"
    assert loss.lost == pytest.approx(loss_of(weight.float(), up @ down, torch.float8_e4m3fn), rel=0.2)
    assert loss.lost > 0.5
    assert "merging would lose" in receipt.summary()


def test_wide_bases_lose_nothing(tmp_path: Path) -> None:
    save_file({"diffusion_model.a.diff": random(8, 8)}, tmp_path / "a.safetensors")
    component = Component("flux", {"a.weight": (8, 8)}, read=lambda _: random(8, 8))
    assert load_lora(read_lora(tmp_path / "a.safetensors"), {"model": component}).receipt.survival == ()
