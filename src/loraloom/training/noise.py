"""Noise levels, targets and weights of the training loss, for eps, v and flow networks.

Levels come from the parametrisation that sampling uses, so that training and inference cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.sampling.types import Parametrisation
from loraloom.training.settings import NoiseSettings

FLUX_CELLS = (256, 4096)
FLUX_MU = (0.5, 1.15)
"""Numbers of patches of 2×2 latent cells, and the logarithm of the shift that Flux.1 samples with there."""


@dataclass(frozen=True, slots=True)
class Noised:
    """A batch at its noise levels. x: (B, C, H, W) network input before scaling; sigma: (B,); target: what
    the network should answer; weight: (B,) of each example's mean squared error."""

    x: Tensor
    sigma: Tensor
    target: Tensor
    weight: Tensor


def draw_sigmas(
    parametrisation: Parametrisation, latent: Tensor, settings: NoiseSettings, generator: torch.Generator
) -> Tensor:
    """(B,) noise levels: uniform over the table, or logit-normal and shifted for flow (Esser et al. 2024)."""
    count = latent.shape[0]
    if parametrisation.is_flow:
        normal = torch.randn(count, generator=generator)
        return shifted((settings.logit_mean + settings.logit_deviation * normal).sigmoid(), latent, settings)
    table = parametrisation.sigmas
    return table[torch.randint(len(table), (count,), generator=generator)]


def even_sigmas(
    parametrisation: Parametrisation, latent: Tensor, draws: int, settings: NoiseSettings
) -> Tensor:
    """(draws,) noise levels spread evenly over what `draw_sigmas` draws: for a loss that can be compared."""
    places = (torch.arange(draws) + 0.5) / draws
    if parametrisation.is_flow:
        normal = torch.special.ndtri(places.double()).float()
        return shifted((settings.logit_mean + settings.logit_deviation * normal).sigmoid(), latent, settings)
    table = parametrisation.sigmas
    return table[(places * len(table)).long()]


def shifted(time: Tensor, latent: Tensor, settings: NoiseSettings) -> Tensor:
    """Flow times moved towards noise: by settings.shift, or as far as Flux.1 does for this size."""
    factor = settings.shift or math.exp(_mu(latent.shape[-2] * latent.shape[-1] / 4))
    return factor * time / (1 + (factor - 1) * time)


def _mu(patches: float) -> float:
    (low, high), (first, last) = FLUX_CELLS, FLUX_MU
    return first + (last - first) * (patches - low) / (high - low)


def add_noise(
    parametrisation: Parametrisation, latent: Tensor, sigma: Tensor, noise: Tensor, settings: NoiseSettings
) -> Noised:
    """A clean batch, as the network sees latents, at its levels; with target and weights."""
    x = parametrisation.add_noise(latent, noise, sigma, max_denoise=False)
    prediction = getattr(parametrisation, "prediction", None)
    level = sigma.reshape(-1, 1, 1, 1)
    if parametrisation.is_flow:
        target = noise - latent
    elif prediction == "eps":
        target = noise
    elif prediction == "v":
        target = (noise - level * latent) / (1 + level**2).sqrt()
    else:
        raise InputError(f"networks that predict {prediction!r} cannot be trained: only eps, v and flow can")
    return Noised(x, sigma, target, _weights(parametrisation.is_flow, prediction, sigma, settings.min_snr))


def draw_noise(latent: Tensor, offset: float, generator: torch.Generator) -> Tensor:
    """Normal noise, with a part that is constant over each channel (Guttenberg 2023) for dark and bright."""
    noise = torch.randn(latent.shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(*latent.shape[:2], 1, 1, generator=generator)
    return noise


def _weights(is_flow: bool, prediction: str | None, sigma: Tensor, gamma: float) -> Tensor:
    """Min-SNR-γ (Hang et al. 2023): no level counts more than one of signal-to-noise ratio γ."""
    if is_flow or not gamma:
        return torch.ones_like(sigma)
    ratio = sigma**-2
    kept = ratio.clamp(max=gamma)
    return kept / (ratio + 1) if prediction == "v" else kept / ratio


def weighted_loss(output: Tensor, noised: Noised) -> Tensor:
    """The scalar loss of a batch."""
    errors = (output.float() - noised.target).square().mean((1, 2, 3))
    return (errors * noised.weight).mean()
