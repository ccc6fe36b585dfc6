"""DPM-Solver++ (Lu et al. 2022, https://arxiv.org/abs/2211.01095): exponential integrators of x0."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from loraloom.sampling.samplers.levels import (
    ancestral_levels,
    derivative,
    flow_ancestral_levels,
    half_log_snr,
    intervals,
    level,
    signal,
    unconditional,
    with_signal,
)
from loraloom.sampling.samplers.registry import sampler
from loraloom.sampling.types import Denoiser, Noise, Step


@sampler("dpmpp_2s_ancestral", noise="reseeded")
def dpmpp_2s_ancestral(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S), the prediction taken at the middle in half-log-SNR, with ancestral noise."""
    p = denoise.parametrisation
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        if p.is_flow:
            down, factor, up = flow_ancestral_levels(sigma, following, eta)
        else:
            down, up = ancestral_levels(sigma, following, eta)
            factor = torch.ones_like(up)
        if down == 0:
            x = denoised
        else:
            if p.is_flow and sigma == 1:
                middle = torch.full_like(sigma, 0.9999)
            else:
                middle = level(p, torch.lerp(half_log_snr(p, sigma), half_log_snr(p, down), 0.5))
            halfway = denoised + (x - denoised) * (middle / sigma)
            x_0 = denoise(halfway, middle)
            x = x_0 + (x - x_0) * (down / sigma)
            if eta > 0:
                x = factor * x + noise(sigma, following) * s_noise * up
        yield Step(i, x, denoised, sigma)


@sampler("dpmpp_2s_ancestral_cfg_pp", noise="reseeded", needs_uncond=True)
def dpmpp_2s_ancestral_cfg_pp(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S) with CFG++: what guidance adds is not scaled down with the noise."""
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        down, up = ancestral_levels(sigma, following, eta)
        if down == 0:
            x = denoised + derivative(x, unconditional(denoise), sigma) * down
        else:
            middle = sigma.log().lerp(down.log(), 0.5).exp()
            shrink = middle / sigma
            halfway = shrink * (x + (denoised - unconditional(denoise))) + (1 - shrink) * denoised
            x_0 = denoise(halfway, middle)
            shrink = down / sigma
            x = shrink * (x + (denoised - unconditional(denoise))) + (1 - shrink) * x_0
        if following > 0:
            x = x + noise(sigma, following) * s_noise * up
        yield Step(i, x, denoised, sigma)


@sampler("dpmpp_2m")
def dpmpp_2m(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M): the slope of x0 from the previous step."""
    previous: Tensor | None = None
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        target = denoised
        if previous is not None and following > 0:
            ratio = (sigmas[i - 1].log() - sigma.log()) / (sigma.log() - following.log())
            target = denoised + (denoised - previous) / (2 * ratio)
        shrink = following / sigma
        x = shrink * x + (1 - shrink) * target
        previous = denoised
        yield Step(i, x, denoised, sigma)


@sampler("dpmpp_2m_cfg_pp", needs_uncond=True)
def dpmpp_2m_cfg_pp(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M) with CFG++: renoised along the unconditional direction."""
    previous: Tensor | None = None
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        uncond = unconditional(denoise)
        shrink = following / sigma
        move = shrink * (x - uncond)
        if previous is not None and following > 0:
            ratio = (sigmas[i - 1].log() - sigma.log()) / (sigma.log() - following.log())
            move = move + (1 - shrink) * (denoised - previous) / (2 * ratio)
        x = denoised + move
        previous = uncond
        yield Step(i, x, denoised, sigma)


@sampler("dpmpp_sde", noise="brownian")
@sampler("dpmpp_sde_gpu", noise="brownian_on_device")
def dpmpp_sde(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Iterator[Step]:
    """DPM-Solver++ for the SDE, with one prediction part way (at share r) of each step."""
    p = denoise.parametrisation
    for i, sigma, following in intervals(with_signal(p, sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            start, end = half_log_snr(p, sigma), half_log_snr(p, following)
            middle = level(p, start + r * (end - start))
            halfway, up = _sde_step(denoise, x, denoised, sigma, middle, eta)
            if eta > 0 and s_noise > 0:
                halfway = halfway + up * s_noise * noise(sigma, middle)
            x_0 = denoised.lerp(denoise(halfway, middle), 1 / (2 * r))
            x, up = _sde_step(denoise, x, x_0, sigma, following, eta)
            if eta > 0 and s_noise > 0:
                x = x + up * s_noise * noise(sigma, following)
        yield Step(i, x, denoised, sigma)


def _sde_step(
    denoise: Denoiser, x: Tensor, x_0: Tensor, sigma: Tensor, following: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Down along x_0 to the ancestral level of `following`. → (x there, deviation of the noise to add)."""
    p = denoise.parametrisation
    alpha, alpha_next = signal(p, sigma), signal(p, following)
    down, up = ancestral_levels(sigma / alpha, following / alpha_next, eta)
    shrink = down / (sigma / alpha)
    return alpha_next * (shrink * x / alpha + (1 - shrink) * x_0), alpha_next * up


@sampler("dpmpp_2m_sde", noise="brownian")
@sampler("dpmpp_2m_sde_gpu", noise="brownian_on_device")
@sampler("dpmpp_2m_sde_heun", noise="brownian", solver_type="heun")
@sampler("dpmpp_2m_sde_heun_gpu", noise="brownian_on_device", solver_type="heun")
def dpmpp_2m_sde(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
) -> Iterator[Step]:
    """DPM-Solver++(2M) for the SDE; `solver_type` weighs the slope of x0 as "midpoint" or "heun" do."""
    p = denoise.parametrisation
    previous: Tensor | None = None
    h_last = torch.zeros(())
    for i, sigma, following in intervals(with_signal(p, sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            h = half_log_snr(p, following) - half_log_snr(p, sigma)
            h_eta = h * (1 + eta)
            growth = (-h_eta).expm1().neg()
            alpha = signal(p, following)
            x = following / sigma * (-h * eta).exp() * x + alpha * growth * denoised
            if previous is not None:
                weight = 1 - growth / h_eta if solver_type == "heun" else 0.5 * growth
                x = x + alpha * weight * (h / h_last) * (denoised - previous)
            if eta > 0 and s_noise > 0:
                x = x + noise(sigma, following) * following * (-2 * h * eta).expm1().neg().sqrt() * s_noise
            h_last = h
        previous = denoised
        yield Step(i, x, denoised, sigma)


@sampler("dpmpp_3m_sde", noise="brownian")
@sampler("dpmpp_3m_sde_gpu", noise="brownian_on_device")
def dpmpp_3m_sde(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(3M) for the SDE: slope and curvature of x0 from the two previous steps."""
    p = denoise.parametrisation
    older: list[tuple[Tensor, Tensor]] = []
    for i, sigma, following in intervals(with_signal(p, sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            h = half_log_snr(p, following) - half_log_snr(p, sigma)
            h_eta = h * (1 + eta)
            alpha = signal(p, following)
            x = following / sigma * (-h * eta).exp() * x + alpha * (-h_eta).expm1().neg() * denoised
            phi_2 = (-h_eta).expm1() / h_eta + 1
            phi_3 = phi_2 / h_eta - 0.5
            if len(older) == 1:
                before, h_1 = older[0]
                x = x + alpha * phi_2 * (denoised - before) / (h_1 / h)
            elif len(older) == 2:
                (before, h_1), (before_2, h_2) = older
                r_0, r_1 = h_1 / h, h_2 / h
                slope_0, slope_1 = (denoised - before) / r_0, (before - before_2) / r_1
                curve = (slope_0 - slope_1) / (r_0 + r_1)
                x = x + alpha * phi_2 * (slope_0 + curve * r_0) - alpha * phi_3 * curve
            if eta > 0 and s_noise > 0:
                x = x + noise(sigma, following) * following * (-2 * h * eta).expm1().neg().sqrt() * s_noise
            older = [(denoised, h), *older][:2]
        yield Step(i, x, denoised, sigma)
