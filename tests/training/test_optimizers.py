"""Rates over steps, and Prodigy finding its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loraloom.errors import InputError
from loraloom.training.optimizers import (
    make_optimizer,
    optimizer_tensors,
    rate_factor,
    restore_optimizer,
    set_rate,
)
from loraloom.training.settings import OptimizerName, OptimizerSettings


def test_the_rate_rises_and_falls() -> None:
    settings = OptimizerSettings(warm_up=0.1, lowest=0.1)
    factors = [rate_factor(step, 100, settings) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and max(factors) == 1.0
    assert all(a >= b for a, b in zip(factors[9:], factors[10:], strict=False))
    assert 0.1 < factors[-1] < 0.11


def test_constant_and_linear() -> None:
    assert {rate_factor(s, 10, OptimizerSettings(decay="constant", warm_up=0)) for s in range(10)} == {1.0}
    linear = OptimizerSettings(decay="linear", warm_up=0)
    assert rate_factor(5, 10, linear) == 0.5


def test_the_text_encoder_has_its_own_rate() -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    rates = [g["lr"] for g in make_optimizer([one], [other], OptimizerSettings(rate=1e-3)).param_groups]
    assert rates == [1e-3, 5e-4]


def prodigy(*tensors: Tensor, weight_decay: float = 0.0) -> tuple[list[nn.Parameter], Optimizer]:
    parameters = [nn.Parameter(tensor.clone()) for tensor in tensors]
    settings = OptimizerSettings(name="prodigy", rate=1.0, weight_decay=weight_decay)
    return parameters, make_optimizer(parameters, [], settings)


def walk(parameters: list[nn.Parameter], optimizer: Optimizer, steps: int) -> list[float]:
    """Steps towards fixed targets; Prodigy's estimate of the distance after each."""
    distances: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        for index, parameter in enumerate(parameters, 1):
            (parameter - torch.tensor([3.0, -20.0, 0.5]) * index).square().sum().backward()
        optimizer.step()
        distances.append(float(optimizer.param_groups[0]["d"]))
    return distances


def test_prodigy_reaches_the_bottom_of_a_valley_without_being_told_a_rate() -> None:
    (place,), optimizer = prodigy(torch.zeros(3))
    distances = walk([place], optimizer, 1500)
    assert all(a <= b for a, b in zip(distances, distances[1:], strict=False))
    target = torch.tensor([3.0, -20.0, 0.5])
    assert float((place.detach() - target).norm()) < 0.01 * float(target.norm())


def test_prodigy_goes_on_bit_for_bit_from_its_saved_state() -> None:
    starts = (torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    straight, optimizer = prodigy(*starts, weight_decay=0.01)
    walk(straight, optimizer, 40)
    first, optimizer = prodigy(*starts, weight_decay=0.01)
    walk(first, optimizer, 25)
    state = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    second, resumed = prodigy(*(p.detach() for p in first), weight_decay=0.01)
    restore_optimizer(resumed, state)
    walk(second, resumed, 15)
    assert all(torch.equal(a, b) for a, b in zip(straight, second, strict=True))


def test_prodigy_has_one_rate_and_says_nothing_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    settings = OptimizerSettings(name="prodigy", rate=1.0)
    optimizer = make_optimizer([one], [other], settings)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0]
    set_rate(optimizer, 0.5)
    (one.sum() + other.sum()).backward()
    optimizer.step()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_numbers_that_an_optimizer_does_not_take_are_named(name: OptimizerName) -> None:
    with pytest.raises(InputError, match="optimizer: .*beta"):
        make_optimizer([nn.Parameter(torch.zeros(1))], [], OptimizerSettings(name=name, betas=(0.9, 1.0)))
