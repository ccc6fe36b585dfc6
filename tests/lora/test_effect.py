"""The size of a change: from factors or from the whole, it is the same number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.lora.component import Component
from loraloom.lora.effect import block_of
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import hashes_of
from loraloom.lora.load import load_lora
from loraloom.lora.receipt import Receipt

from . import oracles


def measured(path: Path, component: Component) -> Receipt:
    return load_lora(read_lora(path), {"model": component}).measured(hashes_of(path))


@pytest.mark.parametrize(
    "algorithm", ["lora", "loha", "lokr-low", "lokr-whole", "dora-input", "glora", "full"]
)
def test_norms_are_those_of_the_change(algorithm: str, tmp_path: Path) -> None:
    oracle = oracles.trained(algorithm, (32, 24))
    weights: dict[str, Tensor] = {"input_blocks.1.a.weight": oracle.weight}
    save_file(
        {
            f"diffusion_model.input_blocks.1.a.{name}": value.contiguous()
            for name, value in oracle.tensors.items()
        },
        tmp_path / "lora.safetensors",
    )
    component = Component("sd15", {"input_blocks.1.a.weight": (32, 24)}, read=weights.__getitem__)
    receipt = measured(tmp_path / "lora.safetensors", component)
    (effect,) = receipt.effects
    assert effect.delta_norm == pytest.approx(float(oracle.change(1.0).norm()), rel=1e-4)
    assert effect.base_norm == pytest.approx(float(oracle.weight.norm()), rel=1e-6)
    (block,) = receipt.at(-0.5, None).effects[0].blocks
    assert block.block == "input_blocks.1"
    assert block.relative == pytest.approx(0.5 * effect.relative)


def test_norm_of_a_large_weight_is_estimated_closely(tmp_path: Path) -> None:
    weight = torch.randn(3000, 600, generator=torch.Generator().manual_seed(0))
    save_file({"diffusion_model.a.diff": torch.ones(3000, 600)}, tmp_path / "lora.safetensors")
    component = Component("sd15", {"a.weight": (3000, 600)}, read=lambda _: weight)
    (effect,) = measured(tmp_path / "lora.safetensors", component).effects
    assert effect.base_norm == pytest.approx(float(weight.norm()), rel=5e-3)


def test_blocks() -> None:
    assert block_of("input_blocks.11.0.in_layers.2.weight") == "input_blocks.11"
    assert block_of("clip_l.transformer.text_model.encoder.layers.3.mlp.fc1.weight") == "clip_l layers.3"
    assert block_of("middle_block.1.proj_in.weight") == "middle_block"
