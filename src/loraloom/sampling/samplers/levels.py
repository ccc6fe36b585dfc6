"""Arithmetic of noise levels that samplers share.

Half-log-SNR is lambda = log(alpha / sigma), the time in which exponential integrators step
(Lu et al. 2022): alpha is 1 for eps and v models in the variance-exploding view, 1 - sigma for flow.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from loraloom.sampling.types import Denoiser, Parametrisation


def intervals(sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index, level, next level) for each step."""
    for i in range(len(sigmas) - 1):
        yield i, sigmas[i], sigmas[i + 1]


def derivative(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """dx/dsigma of the probability flow (Karras et al. 2022)."""
    return (x - denoised) / sigma


def ancestral_levels(sigma: Tensor, following: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The level to step down to, and the deviation of the noise that leads from there to `following`.

    Written as k-diffusion does: near the end the difference of squares is mostly rounding, and pictures
    depend on it.
    """
    if eta == 0.0:
        return following, torch.zeros_like(following)
    if sigma.isinf():
        up = min(1.0, eta) * following
    else:
        up = torch.minimum(following, eta * (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
    return (following**2 - up**2) ** 0.5, up


def flow_ancestral_levels(sigma: Tensor, following: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same on the straight path: the level to step down to, the factor for x and the noise's deviation
    that lead from there to `following` with the signal that belongs to it."""
    down = following * (1 + (following / sigma - 1) * eta)
    signal = (1 - following) / (1 - down)
    return down, signal, (following**2 - down**2 * signal**2) ** 0.5


def half_log_snr(parametrisation: Parametrisation, sigma: Tensor) -> Tensor:
    return sigma.logit().neg() if parametrisation.is_flow else sigma.log().neg()


def level(parametrisation: Parametrisation, half_log_snr: Tensor) -> Tensor:
    """The sigma of a half-log-SNR."""
    return half_log_snr.neg().sigmoid() if parametrisation.is_flow else half_log_snr.neg().exp()


def signal(parametrisation: Parametrisation, sigma: Tensor) -> Tensor:
    """alpha: how much of the clean latent x holds at a level."""
    return 1 - sigma if parametrisation.is_flow else torch.ones_like(sigma)


def with_signal(parametrisation: Parametrisation, sigmas: Tensor) -> Tensor:
    """Levels whose first one has a finite half-log-SNR: pure noise in a flow model has none."""
    if not parametrisation.is_flow or len(sigmas) < 2 or sigmas[0] < 1:
        return sigmas
    return torch.cat([sigmas.new_tensor([parametrisation.percent_to_sigma(1e-4)]), sigmas[1:]])


def unconditional(denoise: Denoiser) -> Tensor:
    """The unconditional prediction of the last call, for CFG++ (Chung et al. 2024)."""
    uncond = denoise.uncond
    if uncond is None:
        raise RuntimeError("a CFG++ sampler ran on a denoiser that keeps no unconditional prediction")
    return uncond
