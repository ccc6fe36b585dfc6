"""Targets and levels: a network that answers the target denoises exactly, whatever it predicts."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import InputError
from loraloom.sampling.parametrisation import Discrete, Flow, FluxFlow
from loraloom.sampling.types import Parametrisation
from loraloom.training.noise import add_noise, draw_noise, draw_sigmas, even_sigmas
from loraloom.training.settings import NoiseSettings

KNOWN = (Discrete("eps"), Discrete("v"), Flow(3.0), FluxFlow())


@pytest.mark.parametrize("parametrisation", KNOWN)
def test_the_target_is_what_denoises(parametrisation: Parametrisation) -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(6, 4, 8, 8, generator=generator)
    noise = draw_noise(latent, 0.0, generator)
    sigma = draw_sigmas(parametrisation, latent, NoiseSettings(), generator)
    noised = add_noise(parametrisation, latent, sigma, noise, NoiseSettings())
    assert torch.allclose(parametrisation.denoised(noised.x, noised.target, sigma), latent, atol=2e-4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_limits_the_weight_of_clean_levels(prediction: str) -> None:
    parametrisation = Discrete(prediction)  # pyright: ignore[reportArgumentType]
    sigma = parametrisation.sigmas[[0, 500, 999]]
    latent = torch.zeros(3, 4, 4, 4)
    weight = add_noise(parametrisation, latent, sigma, latent, NoiseSettings(min_snr=5.0)).weight
    ratio = sigma**-2
    expected = ratio.clamp(max=5.0) / (ratio if prediction == "eps" else ratio + 1)
    assert torch.allclose(weight, expected)
    assert float(weight[0]) < 0.01


@pytest.mark.parametrize("parametrisation", KNOWN)
def test_even_levels_cover_what_is_drawn(parametrisation: Parametrisation) -> None:
    latent = torch.zeros(4000, 4, 32, 32)
    drawn = draw_sigmas(parametrisation, latent, NoiseSettings(), torch.Generator().manual_seed(3))
    even = even_sigmas(parametrisation, latent, 9, NoiseSettings())
    assert torch.allclose(even[4], drawn.median(), rtol=0.1)
    assert bool((even.diff() > 0).all())


def test_larger_pictures_train_at_noisier_times() -> None:
    small, large = torch.zeros(1, 16, 32, 32), torch.zeros(1, 16, 128, 128)
    levels = [float(even_sigmas(FluxFlow(), latent, 3, NoiseSettings())[1]) for latent in (small, large)]
    assert levels[0] < levels[1]


def test_offset_noise_moves_whole_channels() -> None:
    latent = torch.zeros(64, 4, 16, 16)
    plain = draw_noise(latent, 0.0, torch.Generator().manual_seed(1)).mean((2, 3)).std()
    moved = draw_noise(latent, 0.5, torch.Generator().manual_seed(1)).mean((2, 3)).std()
    assert float(plain) < 0.1 < 0.4 < float(moved)


def test_other_predictions_are_refused() -> None:
    with pytest.raises(InputError, match="x0"):
        latent = torch.zeros(1, 4, 4, 4)
        add_noise(Discrete("x0"), latent, torch.ones(1), latent, NoiseSettings())
