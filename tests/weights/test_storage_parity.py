"""Quantised layers give ComfyUI's figures (0.33.0, comfy-kitchen 0.2.40, on the CPU in float32).

tests/data/storage holds single layers: the first 96 rows of those of narrow models, as ComfyUI reads them,
and a small one in each format that comfy-kitchen alone was asked about.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from loraloom.weights.packed import joined
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
    rounds = packed.format.rounds_inputs and "correction" not in packed.parts
    assert (distance(y, y_dequant) > 1e-3) is rounds


@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_of_the_whole(name: str) -> None:
    file = TensorFile(FOLDER / f"{name}.safetensors")
    key = next(key for key, info in file.header.tensors.items() if info.packing is not None)
    packed, values = file.packed(key, mapped=True), file.read(key)
    x = torch.randn(3, values.shape[1])
    ranges = [(5, 9), (20, 41), (2, 3)]
    wanted = torch.cat([values[begin:end] for begin, end in ranges])
    part = packed.rows(ranges)
    assert part.shape == wanted.shape
    torch.testing.assert_close(part.widened(torch.float32), wanted, rtol=1e-5, atol=1e-6)
    whole, cut = packed.product(x, native=True), part.product(x, native=True)
    joined_columns = torch.cat([whole[:, begin:end] for begin, end in ranges], 1)
    torch.testing.assert_close(cut, joined_columns, rtol=1e-5, atol=1e-5)
    index = torch.tensor([[7, 7], [0, 40]])
    torch.testing.assert_close(packed.take(index, torch.float32), values[index], rtol=1e-5, atol=1e-6)
    halves = joined([packed.rows([(0, 10)]), packed.rows([(10, packed.shape[0])])])
    assert halves is not None and torch.equal(halves.widened(torch.float32), values)

    assert packed.widened(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", FILES)
def test_the_gradient_is_that_of_the_values(name: str) -> None:
    file = TensorFile(FOLDER / f"{name}.safetensors")
    key = next(key for key, info in file.header.tensors.items() if info.packing is not None)
    packed, values = file.packed(key), file.read(key)
    x = torch.randn(3, values.shape[1], requires_grad=True)
    (packed.product(x, native=True) * torch.arange(len(values))).sum().backward()
    assert x.grad is not None
    wanted = torch.arange(len(values)).float() @ values
    torch.testing.assert_close(x.grad, wanted.expand(3, -1), rtol=1e-4, atol=1e-2)
