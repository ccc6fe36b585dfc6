"""Parametrisations: times and sigmas invert each other, predictions recover what made the noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from loraloom.sampling.parametrisation import Continuous, Discrete, Distilled, Flow, FluxFlow, Table
from loraloom.sampling.types import Parametrisation
from tests.sampling.toy import noise

ALL: list[Parametrisation] = [
    Discrete("eps"),
    Discrete("v"),
    Discrete("v", Table(zero_snr=True)),
    Discrete("x0"),
    Distilled(),
    Continuous("edm", 0.002, 80.0, sigma_data=0.5),
    Continuous("v", 0.03, 500.0, time="angle"),
    Flow(),
    Flow(1.73, multiplier=1.0),
    FluxFlow(),
]


@pytest.mark.parametrize("p", ALL, ids=repr)
def test_tables_ascend_and_times_lead_back_to_sigmas(p: Parametrisation) -> None:
    assert (p.sigmas.diff() > 0).all()
    assert p.sigma_min == float(p.sigmas[0])
    assert p.sigma_max == float(p.sigmas[-1])
    if not p.is_flow:  # a flow's time input is its shifted sigma, while `sigma` maps unshifted time
        back = p.timestep(p.sigma(p.timestep(p.sigmas).float()))
        torch.testing.assert_close(back.float(), p.timestep(p.sigmas).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("p", ALL, ids=repr)
def test_percent_runs_from_all_noise_to_none(p: Parametrisation) -> None:
    assert p.percent_to_sigma(0.0) >= p.sigma_max * (1 - 1e-6)
    assert p.percent_to_sigma(1.0) == 0.0
    levels = [p.percent_to_sigma(i / 10) for i in range(11)]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("p", ALL, ids=repr)
def test_parametrisations_are_values(p: Parametrisation) -> None:
    assert hash(p) == hash(p)
    assert p in ALL


def perfect_output(p: Parametrisation, latent: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """What a network that knows the answer gives, from each prediction's definition."""
    if p.is_flow:
        return eps - latent
    assert isinstance(p, Discrete | Continuous)
    data = p.sigma_data
    spread = (sigma**2 + data**2) ** 0.5
    x = latent + sigma * eps
    match p.prediction:
        case "eps":
            return eps
        case "x0":
            return latent
        case "v":
            return (x * data**2 / spread**2 - latent) * spread / (sigma * data)
        case _:
            return (latent - x * data**2 / spread**2) * spread / (sigma * data)


@pytest.mark.parametrize("p", [p for p in ALL if not isinstance(p, Distilled)], ids=repr)
def test_denoised_recovers_the_latent(p: Parametrisation) -> None:
    latent, eps = noise(1), noise(2)
    sigma = p.sigmas[len(p.sigmas) // 2]
    x = p.add_noise(latent, eps, sigma, max_denoise=False)
    recovered = p.denoised(x, perfect_output(p, latent, eps, sigma), sigma)
    torch.testing.assert_close(recovered, latent, rtol=1e-4, atol=1e-4)


def test_sigmas_of_a_batch_act_on_their_own_latents() -> None:
    p, x, out = Discrete("v"), noise(1, 2, 4, 8, 8), noise(2, 2, 4, 8, 8)
    sigma = torch.tensor([0.5, 7.0])
    both = p.denoised(x, out, sigma)
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], p.denoised(x[i : i + 1], out[i : i + 1], sigma[i]))
        torch.testing.assert_close(p.scale_input(x, sigma)[i : i + 1], p.scale_input(x[i : i + 1], sigma[i]))


def test_starting_from_noise_alone_has_the_networks_deviation() -> None:
    p = Discrete("eps")
    latent, eps, sigma = torch.zeros(1, 4, 8, 8), noise(1), torch.tensor(p.sigma_max)
    torch.testing.assert_close(p.scale_input(p.add_noise(latent, eps, sigma, max_denoise=True), sigma), eps)


def test_flow_undoes_the_scale_that_leftover_noise_leaves() -> None:
    p, latent, sigma = Flow(), noise(1), torch.tensor(0.25)
    x = p.add_noise(latent, torch.zeros_like(latent), sigma, max_denoise=False)
    torch.testing.assert_close(p.remove_noise_scale(x, sigma), latent)


def test_zero_terminal_snr_ends_in_noise_alone() -> None:
    plain, zero = Table(), Table(zero_snr=True)
    assert zero.sigmas[-1] > 4000
    assert float(zero.sigmas[0]) == pytest.approx(float(plain.sigmas[0]), rel=1e-3)


def test_distilled_models_keep_every_twentieth_level() -> None:
    p = Distilled()
    assert len(p.sigmas) == 50
    assert float(p.timestep(p.sigmas[-1])) == 999
    assert float(p.timestep(p.sigmas[0])) == 19
    assert math.isclose(float(p.sigma(torch.tensor(999.0))), p.sigma_max, rel_tol=1e-6)


def test_consistency_models_give_their_input_back_near_zero_noise() -> None:
    p, x = Distilled(), noise(1)
    far = p.denoised(x, torch.zeros_like(x), torch.tensor(p.sigma_max))
    torch.testing.assert_close(far, x, rtol=1e-3, atol=1e-3)


def test_known_sigmas_of_stable_diffusion() -> None:
    p = Discrete("eps")
    assert p.sigma_min == pytest.approx(0.0291675, abs=1e-6)
    assert p.sigma_max == pytest.approx(14.614642, abs=1e-5)
