"""Tokens that are alike count as one: what comes back, what attention sees, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.computing import Computing
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.models.token_merging import RATIO, Merging, TokenMerging, has_levels
from loraloom.sampling.inputs import Inputs, Tokens
from tests import tiny_models


def tokens(rows: int, height: int, width: int) -> Tensor:
    return torch.randn(rows, height * width, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(8, 6), (5, 7), (1, 4), (2, 1), (1, 1)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_every_token_gets_something_back(height: int, width: int, ratio: float) -> None:
    given = tokens(2, height, width)
    merging = Merging.of(given, height, width, ratio)
    merged = merging.merge(given)
    most = len(merging.others)
    assert merged.shape[1] == height * width - min(most, int(height * width * ratio))
    back = merging.spread(merged)
    assert back.shape == given.shape and bool(back.isfinite().all())
    if ratio == 0:
        assert torch.equal(back, given)


def test_tokens_that_are_the_same_lose_nothing() -> None:
    """Each square of 2×2 in one colour: three of its tokens are averaged with the fourth."""
    squares = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(2))
    given = squares.repeat_interleave(2, 1).repeat_interleave(2, 2).reshape(1, 64, 8)
    merging = Merging.of(given, 8, 8, 0.75)
    merged = merging.merge(given)
    assert merged.shape[1] == 16
    torch.testing.assert_close(merging.spread(merged), given)


def test_those_that_are_most_alike_are_averaged() -> None:
    """All but one of the others are far from every destination."""
    given = tokens(1, 4, 4)
    places = Merging.of(given, 4, 4, 0.0)
    other, end = int(places.others[3]), int(places.destinations[2])
    given[0, other] = 1.01 * given[0, end]
    merging = Merging.of(given, 4, 4, 1 / 16)
    assert merging.others[merging.merged[0]].tolist() == [other]
    back = merging.spread(merging.merge(given))[0]
    torch.testing.assert_close(back[other], (given[0, other] + given[0, end]) / 2)
    torch.testing.assert_close(back[end], back[other])
    untouched = [place for place in range(16) if place not in (other, end)]
    assert torch.equal(back[untouched], given[0, untouched])


@pytest.fixture
def model(tmp_path: Path) -> DiffusionModel:
    found, _, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    return found


def output(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 4, 16, 24, generator=generator)
    context = torch.randn(1, 77, 64, generator=generator)
    with torch.inference_mode():
        return network(x, torch.tensor([500.0]), Inputs({"context": Tokens(context)}))


def test_only_the_largest_level_attends_to_fewer_tokens(model: DiffusionModel) -> None:
    network = Memory("cpu", "fp32").network(model)
    usual, module = output(network), network.module()
    seen: dict[str, int] = {}
    for name, layer in module.named_modules():
        if name.endswith("attn1.to_q"):
            layer.register_forward_hook(
                lambda _, given, out, name=name: seen.update({name: given[0].shape[1]})
            )
    with TokenMerging().on(module):
        fast = output(network)
    whole = 16 * 24
    merged = {name: count for name, count in seen.items() if count == whole - int(whole * RATIO)}
    assert merged and all(name.startswith(("down_blocks.0", "up_blocks.1")) for name in merged)
    assert whole not in seen.values() and len(seen) > len(merged)
    assert 0 < (fast - usual).norm() / usual.norm() < 0.2
    with TokenMerging(0.0).on(module):
        assert torch.equal(output(network), usual)
    assert torch.equal(output(network), usual)


def test_rows_of_a_batch_are_merged_each_for_itself(model: DiffusionModel) -> None:
    network = Memory("cpu", "fp32", computing=Computing(fast=("tokens",))).network(model)
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 64, generator=generator)
    inputs = Inputs({"context": Tokens(context)})
    with torch.inference_mode():
        both = network(x, torch.tensor([500.0, 500.0]), inputs)
        second = network(x[1:], torch.tensor([500.0]), inputs.rows(slice(1, 2)))
    torch.testing.assert_close(both[1:], second, rtol=1e-3, atol=1e-4)
    assert has_levels(network.config)
