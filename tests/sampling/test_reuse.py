"""Evaluations that would hardly differ are left out where that is wanted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.sampling.guidance import CFG
from loraloom.sampling.noise import initial_noise
from loraloom.sampling.reuse import FIRST, Reusing
from loraloom.sampling.run import completed, sample
from loraloom.sampling.samplers.registry import method
from loraloom.sampling.schedules import sigmas_for
from loraloom.sampling.types import Cond, Conditioning, Network
from tests.sampling.toy import NEGATIVE, POSITIVE, Toy, toy

STEPS = 40


def sampled(network: Network, negative: Conditioning = NEGATIVE) -> Tensor:
    latent = torch.zeros(1, 4, 8, 8)
    euler = method("euler")
    steps = sample(
        network,
        CFG(POSITIVE, negative, 4.0),
        latent=latent,
        noise=initial_noise(latent, 1),
        method=euler,
        sigmas=sigmas_for(network.parametrisation, "normal", STEPS, method=euler),
        seed=1,
    )
    return completed(steps).latent


def test_some_evaluations_are_left_out_and_counted() -> None:
    base = toy()
    expected, base.calls = sampled(base), []
    reusing = Reusing(base)
    given = sampled(reusing)
    assert reusing.asked == STEPS
    assert 0 < reusing.reused == STEPS - len(base.calls) < STEPS - FIRST
    difference = (given - expected).norm() / expected.norm()
    assert 0 < difference < 0.2


def test_the_first_and_the_last_are_computed() -> None:
    base, seen = toy(), list[Tensor]()
    base.hook = lambda x, out: (seen.append(x), out)[1]
    reusing = Reusing(base, threshold=1e9)
    sampled(reusing)
    assert len(base.calls) == FIRST + 1 and reusing.reused == STEPS - FIRST - 1


def test_no_threshold_leaves_nothing_out() -> None:
    base = toy()
    reusing = Reusing(base, threshold=0.0)
    assert torch.equal(sampled(reusing), sampled(toy())) and reusing.reused == 0


def test_sides_that_are_evaluated_apart_are_not_mixed_up() -> None:
    """A negative prompt of another length, which does not join: each side stands in for itself."""
    longer: Conditioning = (Cond(torch.full((1, 77 * 5, 8), -0.25)),)
    base = toy()
    expected, base.calls = sampled(base, longer), []
    reusing = Reusing(base, threshold=0.05)
    given = sampled(reusing, longer)
    assert reusing.asked == 2 * STEPS and reusing.reused > 0
    assert (given - expected).norm() / expected.norm() < 0.2


def test_it_is_a_network_like_the_one_within() -> None:
    base = toy("sd3")
    reusing = Reusing(base)
    for name in ("parametrisation", "latent_channels", "latent_pixels", "dtype_name", "device"):
        assert getattr(reusing, name) == getattr(base, name)
    assert torch.equal(
        reusing.process_latent_in(torch.ones(1, 16, 2, 2)), base.process_latent_in(torch.ones(1, 16, 2, 2))
    )


def test_blocks_are_skipped_by_the_network_within() -> None:
    with pytest.raises(InputError, match="cannot skip layers"):
        Reusing(toy()).skipping((("double", 1),))

    class Skipping(Toy):
        def skipping(self, blocks: tuple[tuple[str, int], ...]) -> Toy:
            return toy("sd3" if blocks else "eps")

    parametrisation = toy().parametrisation
    assert Reusing(Skipping(parametrisation)).skipping((("double", 1),)).latent_channels == 16
