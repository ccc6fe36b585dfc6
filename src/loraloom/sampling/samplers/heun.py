"""Second-order one-step samplers in sigma: Heun, Heun++ and DPM-Solver-2, with the ancestral form."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from loraloom.sampling.samplers.euler import churned
from loraloom.sampling.samplers.levels import (
    ancestral_levels,
    derivative,
    flow_ancestral_levels,
    intervals,
)
from loraloom.sampling.samplers.registry import sampler
from loraloom.sampling.types import Denoiser, Noise, Step


@sampler("heun")
def heun(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 2: the slope is the mean of those at both ends."""
    for i, _, following in intervals(sigmas):
        x, sigma = churned(
            x, sigmas, i, noise=noise, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
        )
        denoised = denoise(x, sigma)
        slope = derivative(x, denoised, sigma)
        if following > 0:
            ahead = x + slope * (following - sigma)
            slope = (slope + derivative(ahead, denoise(ahead, following), following)) / 2
        x = x + slope * (following - sigma)
        yield Step(i, x, denoised, sigma)


@sampler("heunpp2")
def heunpp2(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Heun++ (Shen et al. 2023): slopes of up to two levels ahead, weighed by their sigma."""
    for i, _, following in intervals(sigmas):
        x, sigma = churned(
            x, sigmas, i, noise=noise, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
        )
        denoised = denoise(x, sigma)
        slope = derivative(x, denoised, sigma)
        ahead, slopes, weights = x, [slope], [0.0]
        levels = [sigma, *sigmas[i + 1 : i + 3]]
        if levels[-1] == sigmas[-1]:
            levels.pop()
        for here, there in zip(levels[:-1], levels[1:], strict=True):
            ahead = ahead + slopes[-1] * (there - here)
            slopes.append(derivative(ahead, denoise(ahead, there), there))
            weights.append(float(there / sigmas[0]) / len(levels))
        weights[0] = 1 - sum(weights)
        slope = sum((w * s for w, s in zip(weights[1:], slopes[1:], strict=True)), weights[0] * slope)
        x = x + slope * (following - sigma)
        yield Step(i, x, denoised, sigma)


@sampler("dpm_2", drops_penultimate=True)
def dpm_2(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """The slope at the geometric middle of the interval (DPM-Solver-2, Lu et al. 2022)."""
    for i, _, following in intervals(sigmas):
        x, sigma = churned(
            x, sigmas, i, noise=noise, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
        )
        denoised = denoise(x, sigma)
        x = _middle_step(denoise, x, denoised, sigma, following)
        yield Step(i, x, denoised, sigma)


@sampler("dpm_2_ancestral", noise="reseeded", drops_penultimate=True)
def dpm_2_ancestral(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver-2 to a lower level than asked, then fresh noise up to it."""
    is_flow = denoise.parametrisation.is_flow
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        if is_flow:
            down, factor, up = flow_ancestral_levels(sigma, following, eta)
            x = _middle_step(denoise, x, denoised, sigma, down)
            if down > 0:
                x = factor * x
        else:
            down, up = ancestral_levels(sigma, following, eta)
            x = _middle_step(denoise, x, denoised, sigma, down)
        if down > 0:
            x = x + noise(sigma, following) * s_noise * up
        yield Step(i, x, denoised, sigma)


def _middle_step(denoise: Denoiser, x: Tensor, denoised: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    slope = derivative(x, denoised, sigma)
    if following > 0:
        middle = sigma.log().lerp(following.log(), 0.5).exp()
        halfway = x + slope * (middle - sigma)
        slope = derivative(halfway, denoise(halfway, middle), middle)
    return x + slope * (following - sigma)
