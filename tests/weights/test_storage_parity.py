"""Quantised layers give ComfyUI's figures (0.33.0, comfy-kitchen 0.2.40, on the CPU in float32).

tests/data/storage holds the first 96 rows of one layer of narrow models, as ComfyUI reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile

FOLDER = Path(__file__).parents[1] / "data" / "storage"
FILES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", FILES)
def test_weights_and_products_are_comfyuis(name: str) -> None:
    source = WeightSource.of_file(TensorFile(FOLDER / f"{name}.safetensors"))
    with np.load(FOLDER / "figures.npz") as figures:
        x, head, y, y_dequant = (
            torch.from_numpy(figures[f"{name}|{what}"]) for what in ("x", "head", "y", "y_dequant")
        )
    native = next(weight for weight in source.shapes if weight.endswith(".weight"))
    bias = native.replace("weight", "bias")
    added = source.read(bias) if bias in source else torch.zeros(len(y[0]))
    packed = source.packed(native)
    assert packed is not None
    assert distance(source.read(native)[:24, :24], head) < 1e-6
    assert distance(packed.product(x, native=True) + added, y) < 1e-6
    assert distance(packed.product(x, native=False) + added, y_dequant) < 1e-6
    assert (distance(y, y_dequant) > 1e-3) is packed.format.rounds_inputs
