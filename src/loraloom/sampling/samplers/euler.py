"""First-order samplers: Euler, its ancestral and CFG++ forms, DDIM, DDPM and consistency sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from loraloom.sampling.samplers.levels import (
    ancestral_levels,
    derivative,
    flow_ancestral_levels,
    intervals,
    signal,
    unconditional,
)
from loraloom.sampling.samplers.registry import sampler
from loraloom.sampling.types import Denoiser, Noise, SizedNoise, Step


def churned(
    x: Tensor,
    sigmas: Tensor,
    i: int,
    *,
    noise: Noise,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
) -> tuple[Tensor, Tensor]:
    """Karras et al. 2022, algorithm 2, lines 4 to 6: noise x up a little before step i. → (x, its level)."""
    sigma = sigmas[i]
    if s_churn <= 0 or not s_tmin <= sigma <= s_tmax:
        return x, sigma
    raised = sigma * (1 + min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1))
    return x + noise(sigma, raised) * s_noise * (raised**2 - sigma**2) ** 0.5, raised


@sampler("euler")
@sampler("ddim", own_mask_noise=True)
def euler(
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
    """Karras et al. 2022, algorithm 2 with Euler steps; without churn, DDIM (Song et al. 2020)."""
    for i, _, following in intervals(sigmas):
        x, sigma = churned(
            x, sigmas, i, noise=noise, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
        )
        denoised = denoise(x, sigma)
        x = x + derivative(x, denoised, sigma) * (following - sigma)
        yield Step(i, x, denoised, sigma)


@sampler("euler_ancestral", noise="reseeded")
def euler_ancestral(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Euler to a lower level than asked, then fresh noise up to it."""
    is_flow = denoise.parametrisation.is_flow
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        elif is_flow:
            down, factor, up = flow_ancestral_levels(sigma, following, eta)
            x = denoised + (x - denoised) * (down / sigma)
            if eta > 0:
                x = factor * x + noise(sigma, following) * s_noise * up
        else:
            down, up = ancestral_levels(sigma, following, eta)
            x = x + derivative(x, denoised, sigma) * (down - sigma) + noise(sigma, following) * s_noise * up
        yield Step(i, x, denoised, sigma)


@sampler("euler_cfg_pp", noise="reseeded", needs_uncond=True, eta=0.0)
@sampler("euler_ancestral_cfg_pp", noise="reseeded", needs_uncond=True)
def euler_ancestral_cfg_pp(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """CFG++ (Chung et al. 2024): the guided x0, renoised along the unconditional direction."""
    p = denoise.parametrisation
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            alpha, alpha_next = signal(p, sigma), signal(p, following)
            direction = derivative(x, alpha * unconditional(denoise), sigma)
            down, up = ancestral_levels(sigma / alpha, following / alpha_next, eta)
            x = alpha_next * (denoised + down * direction)
            if eta > 0 and s_noise > 0:
                x = x + alpha_next * noise(sigma, following) * s_noise * up
        yield Step(i, x, denoised, sigma)


def euler_pp(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Iterator[Step]:
    """Euler steps whose slope leads away from the guided x0 and towards the unconditional one's place: the
    other form of CFG++ that ComfyUI offers. Needs the unconditional side; has no name of its own."""
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        slope = derivative(x - denoised + unconditional(denoise), denoised, sigma)
        x = x + slope * (following - sigma)
        yield Step(i, x, denoised, sigma)


@sampler("lcm", noise="reseeded")
def lcm(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Iterator[Step]:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): predict x0, noise it anew."""
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        x = denoised
        if following > 0:
            x = denoise.parametrisation.add_noise(x, noise(sigma, following), following, max_denoise=False)
        yield Step(i, x, denoised, sigma)


def lcm_upscale(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: SizedNoise,
    ratio: float,
    resize: Callable[[Tensor, int, int], Tensor],
    enlargements: int | None = None,
) -> Iterator[Step]:
    """Consistency sampling that enlarges the latent to `ratio` times its size on the way, evenly over the
    first `enlargements` steps (None: half of the levels). resize: (latent, width, height) → latent. Needs
    "continued" noise; has no name of its own."""
    levels = len(sigmas)
    stages = max(levels // 2 + 1, 2) if enlargements is None else min(enlargements, levels) + 1
    ratios = np.linspace(1.0, ratio, stages)[1:].tolist()
    height, width = x.shape[-2:]
    for i, sigma, following in intervals(sigmas):
        x = denoised = denoise(x, sigma)
        if i < len(ratios):
            x = resize(x, round(width * ratios[i]), round(height * ratios[i]))
        if following > 0:
            x = x + following * noise(sigma, following, x.shape)
        yield Step(i, x, denoised, sigma)


@sampler("ddpm", noise="reseeded")
def ddpm(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Iterator[Step]:
    """Ancestral sampling of Ho et al. 2020 (algorithm 2, posterior variance), in VP coordinates."""
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        eps = derivative(x, denoised, sigma)
        kept, kept_next = 1 / (sigma**2 + 1), 1 / (following**2 + 1)
        alpha = kept / kept_next
        x = (x * kept.sqrt() - (1 - alpha) * eps / (1 - kept).sqrt()) / alpha.sqrt()
        if following > 0:
            x = x + ((1 - alpha) * (1 - kept_next) / (1 - kept)).sqrt() * noise(sigma, following)
            x = x / kept_next.sqrt()
        yield Step(i, x, denoised, sigma)
