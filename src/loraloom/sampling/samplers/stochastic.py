"""SDE solvers whose stages need no derivatives of the network: SEEDS and ER-SDE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.sampling.samplers.levels import half_log_snr, intervals, level, signal, with_signal
from loraloom.sampling.samplers.registry import sampler
from loraloom.sampling.types import Denoiser, Noise, Parametrisation, Step


class _Exponential:
    """Exponential steps of one interval, from its start to shares r of its length in half-log-SNR."""

    def __init__(self, p: Parametrisation, sigma: Tensor, following: Tensor, eta: float) -> None:
        self.p, self.sigma, self.eta = p, sigma, eta
        self.start = half_log_snr(p, sigma)
        self.h = half_log_snr(p, following) - self.start
        self.h_eta = self.h * (1 + eta)

    def at(self, r: float) -> Tensor:
        """The level at share r."""
        return level(self.p, self.start + r * self.h)

    def towards(self, x: Tensor, x_0: Tensor, there: Tensor, r: float) -> Tensor:
        """From the start to the level `there` with a constant prediction."""
        shrink = there / self.sigma * (-r * self.h * self.eta).exp()
        return shrink * x - signal(self.p, there) * (-r * self.h_eta).expm1() * x_0

    def slope(self, there: Tensor, r: float) -> Tensor:
        """The factor of a difference of predictions over the whole share r."""
        return signal(self.p, there) * ((-r * self.h_eta).expm1() / (r * self.h_eta) + 1)

    def noise(self, earlier: Tensor | float, fresh: Tensor, r_from: float, r_to: float) -> Tensor:
        """Noise of share r_from, carried on to share r_to."""
        gap = (r_from - r_to) * self.h * self.eta
        return earlier * gap.exp() + (2 * gap).expm1().neg().sqrt() * fresh


@sampler("seeds_2", noise="reseeded")
def seeds_2(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Iterator[Step]:
    """SEEDS-2 (Gonzalez et al. 2023, https://arxiv.org/abs/2305.14267), data prediction."""
    p = denoise.parametrisation
    noisy = eta > 0 and s_noise > 0
    for i, sigma, following in intervals(with_signal(p, sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            step = _Exponential(p, sigma, following, eta)
            middle = step.at(r)
            x_2 = step.towards(x, denoised, middle, r)
            drawn = step.noise(0.0, noise(sigma, middle), 0.0, r) if noisy else torch.zeros(())
            x_2 = x_2 + drawn * middle * s_noise
            x = step.towards(x, denoised.lerp(denoise(x_2, middle), 1 / (2 * r)), following, 1.0)
            if noisy:
                x = x + step.noise(drawn, noise(middle, following), r, 1.0) * following * s_noise
        yield Step(i, x, denoised, sigma)


@sampler("seeds_3", noise="reseeded")
def seeds_3(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r_1: float = 1 / 3,
    r_2: float = 2 / 3,
) -> Iterator[Step]:
    """SEEDS-3 (Gonzalez et al. 2023), data prediction."""
    p = denoise.parametrisation
    noisy = eta > 0 and s_noise > 0
    for i, sigma, following in intervals(with_signal(p, sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            step = _Exponential(p, sigma, following, eta)
            first, second = step.at(r_1), step.at(r_2)
            drawn = step.noise(0.0, noise(sigma, first), 0.0, r_1) if noisy else torch.zeros(())
            x_2 = step.towards(x, denoised, first, r_1) + drawn * first * s_noise
            change = denoise(x_2, first) - denoised
            x_3 = step.towards(x, denoised, second, r_2) + (r_2 / r_1) * step.slope(second, r_2) * change
            if noisy:
                drawn = step.noise(drawn, noise(first, second), r_1, r_2)
                x_3 = x_3 + drawn * second * s_noise
            change = denoise(x_3, second) - denoised
            x = step.towards(x, denoised, following, 1.0) + step.slope(following, 1.0) / r_2 * change
            if noisy:
                x = x + step.noise(drawn, noise(second, following), r_2, 1.0) * following * s_noise
        yield Step(i, x, denoised, sigma)


NoiseScale = Callable[[Tensor], Tensor]
"""Noise-to-signal ratio → the function phi of the paper that sets how stochastic a level is."""


def extended_noise_scale(ratio: Tensor) -> Tensor:
    """ER-SDE-5 of the paper."""
    return ratio * ((ratio**0.3).exp() + 10.0)


@dataclass(frozen=True, slots=True)
class PowerNoiseScale:
    """The reverse-time SDE with noise strength eta; the ODE at 0."""

    eta: float

    def __call__(self, ratio: Tensor) -> Tensor:
        return ratio ** (self.eta + 1)


@sampler("er_sde", noise="reseeded")
def er_sde(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_noise: float = 1.0,
    max_stage: int = 3,
    noise_scale: NoiseScale = extended_noise_scale,
    points: int = 200,
) -> Iterator[Step]:
    """Extended reverse-time SDE solver (Cui et al. 2023, https://arxiv.org/abs/2309.06169), order 3.

    noise_scale: the paper's phi. points: how finely its reciprocal is integrated.
    """
    p = denoise.parametrisation
    sigmas = with_signal(p, sigmas)
    ratios = half_log_snr(p, sigmas).neg().exp()
    previous, slope_before = torch.zeros(()), torch.zeros(())
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            here, there = ratios[i], ratios[i + 1]
            alpha = signal(p, following)
            scale = noise_scale(there)
            r = scale / noise_scale(here)
            x = alpha / signal(p, sigma) * r * x + alpha * (1 - r) * denoised
            if i > 0 and max_stage >= 2:
                dt = there - here
                width = -dt / points
                places = there + torch.arange(points, device=x.device) * width
                inverse = 1 / noise_scale(places)
                slope = (denoised - previous) / (here - ratios[i - 1])
                x = x + alpha * (dt + inverse.sum() * width * scale) * slope
                if i > 1 and max_stage >= 3:
                    curve = (slope - slope_before) / ((here - ratios[i - 2]) / 2)
                    moment = ((places - here) * inverse).sum() * width
                    x = x + alpha * (dt**2 / 2 + moment * scale) * curve
                slope_before = slope
            if s_noise > 0:
                up = (there**2 - here**2 * r**2).sqrt().nan_to_num(nan=0.0)
                x = x + alpha * noise(sigma, following) * s_noise * up
        previous = denoised
        yield Step(i, x, denoised, sigma)
