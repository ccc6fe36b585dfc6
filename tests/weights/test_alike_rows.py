"""What is the same for both sides of guidance is computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from loraloom.weights.less_work import with_less_work

Given = tuple[Tensor, ...]


def block() -> tuple[nn.Module, Callable[[int], Given]]:
    made = ResnetBlock2D(in_channels=8, out_channels=16, groups=4, temb_channels=6)
    return made.eval(), lambda rows: (torch.randn(rows, 8, 6, 6), torch.randn(rows, 6))


def attention() -> tuple[nn.Module, Callable[[int], Given]]:
    return Attention(16, heads=2, dim_head=8).eval(), lambda rows: (torch.randn(rows, 5, 16),)


@pytest.fixture(params=[block, attention])
def made(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, nn.Module, Callable[[int], Given]]]:
    """The plain module, one that chooses, and inputs of so many rows."""
    torch.manual_seed(0)
    plain, inputs = request.param()
    choosing = copy.deepcopy(plain)
    with_less_work(choosing)
    with torch.no_grad():
        yield plain, choosing, inputs


def run(module: Any, given: Given) -> tuple[Tensor, int]:
    with FlopCounterMode(display=False) as counter:
        output = module(*given)
    return output, counter.get_total_flops()


def doubled(given: Given) -> Given:
    return tuple(torch.cat([tensor, tensor]) for tensor in given)


@pytest.mark.parametrize("rows", [1, 2])
def test_alike_halves_are_computed_once(made: Any, rows: int) -> None:
    plain, choosing, inputs = made
    given = doubled(inputs(rows))
    (expected, whole), (output, work) = run(plain, given), run(choosing, given)
    assert (output - expected).abs().max() < 1e-5
    assert 2 * work == whole


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_others_are_computed_apart(made: Any, rows: int) -> None:
    plain, choosing, inputs = made
    given = inputs(rows)
    (expected, whole), (output, work) = run(plain, given), run(choosing, given)
    assert (output - expected).abs().max() < 1e-5 and work == whole


def test_one_number_makes_a_difference(made: Any) -> None:
    plain, choosing, inputs = made
    given = doubled(inputs(1))
    given[-1].view(-1)[-1] += 1
    (expected, _), (output, _) = run(plain, given), run(choosing, given)
    assert (output - expected).abs().max() < 1e-5
    assert not torch.equal(output[0], output[1])


def test_what_is_hooked_in_sees_every_row(made: Any) -> None:
    _, choosing, inputs = made
    seen = list[int]()
    part = next(module for module in choosing.modules() if isinstance(module, nn.Linear))
    part.register_forward_hook(lambda module, given, output: seen.append(len(given[0])))
    run(choosing, doubled(inputs(1)))
    assert set(seen) == {2}
