"""Rates over steps, and Prodigy finding its own."""

from __future__ import annotations

import torch
from torch import nn

from loraloom.training.optimizers import make_optimizer, rate_factor
from loraloom.training.prodigy import Prodigy
from loraloom.training.settings import OptimizerSettings


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


def test_prodigy_reaches_the_bottom_of_a_valley_without_being_told_a_rate() -> None:
    target = torch.tensor([3.0, -20.0, 0.5])
    place = nn.Parameter(torch.zeros(3))
    optimizer = Prodigy([{"params": [place]}])
    distances: list[float] = []
    for _ in range(1500):
        optimizer.zero_grad()
        (place - target).square().sum().backward()
        optimizer.step()
        distances.append(float(optimizer.param_groups[0]["d"]))
    assert all(a <= b for a, b in zip(distances, distances[1:], strict=False))
    assert float((place.detach() - target).norm()) < 0.01 * float(target.norm())
