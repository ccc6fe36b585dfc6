"""Modules with parameters on meta: what they compute themselves is real and right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from loraloom.errors import ModelFileError
from loraloom.weights.meta import build_unfilled, complete

CPU = torch.device("cpu")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.token = nn.Parameter(torch.zeros(2))
        self.register_buffer("frequencies", 1 / (10 ** torch.arange(4)), persistent=False)
        self.tables = [torch.polar(torch.ones(3), torch.arange(3.0))]


def small_qwen() -> Qwen3Model:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip


def fill(module: nn.Module) -> None:
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(torch.zeros(parameter.shape)))


@pytest.mark.parametrize(
    "build",
    [Layer, small_qwen, lambda: QwenEmbedRope(10000, [16, 56, 56])],
    ids=["layer", "Qwen3", "QwenEmbedRope"],
)
def test_what_is_computed_is_that_of_a_plain_build(build: type[nn.Module]) -> None:
    found, plain = build_unfilled(build), build()
    large = [parameter for parameter in found.parameters() if parameter.dim() > 1]
    assert all(parameter.is_meta for parameter in large)
    fill(found)
    complete(found, CPU)
    for (name, one), (other, two) in zip(found.named_buffers(), plain.named_buffers(), strict=True):
        assert name == other and one.dtype == two.dtype and torch.equal(one, two)
    for one, two in zip(found.modules(), plain.modules(), strict=True):
        for name, value in vars(two).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(one, name), value)


def test_layers_and_tables() -> None:
    found = build_unfilled(Layer)
    assert isinstance(found, Layer) and found.linear.weight.is_meta
    assert torch.equal(found.tables[0], Layer().tables[0])
    with pytest.raises(ModelFileError, match=r"nothing gives values to linear\.weight, linear\.bias of"):
        complete(found, CPU)


class Unfinished(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.tables.append(torch.empty(3))
        self.register_buffer("running", torch.empty(2), persistent=False)


def test_tables_left_without_values_are_named() -> None:
    found = build_unfilled(Unfinished)
    fill(found)
    with pytest.raises(ModelFileError, match=r"nothing gives values to running, tables of"):
        complete(found, CPU)


def test_nothing_is_initialised_that_a_file_fills() -> None:
    """On "meta" that would import TorchDynamo and SymPy."""
    code = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from loraloom.weights.meta import build_unfilled\n"
        "made = build_unfilled(lambda: nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.LayerNorm(4)))\n"
        "assert all(parameter.is_meta for parameter in made.parameters())\n"
        "assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": source})
