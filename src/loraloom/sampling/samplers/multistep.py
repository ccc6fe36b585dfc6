"""Linear multistep samplers in sigma: the slope is fitted to those of previous steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from loraloom.sampling.samplers.levels import ancestral_levels, derivative, intervals, unconditional
from loraloom.sampling.samplers.registry import sampler
from loraloom.sampling.types import Denoiser, Noise, Step

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest to the oldest slope for even steps, by order."""

_Slopes = list[Tensor]


def _weighed(slopes: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """Σ weight · slope, the newest slope first."""
    total = weights[0] * slopes[0]
    for slope, weight in zip(slopes[1:], weights[1:], strict=True):
        total = total + weight * slope
    return total


@sampler("lms")
def lms(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, order: int = 4) -> Iterator[Step]:
    """Linear multistep (Adams-Bashforth for uneven steps): the polynomial through the slopes, integrated."""
    slopes: _Slopes = []
    nodes = sigmas.cpu().numpy()
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        slopes = [derivative(x, denoised, sigma), *slopes][:order]
        if following == 0:
            x = denoised
        else:
            used = nodes[i - len(slopes) + 1 : i + 1][::-1]
            x = x + _weighed(slopes, _polynomial_weights(used, nodes[i + 1]))
        yield Step(i, x, denoised, sigma)


def _polynomial_weights(nodes: np.ndarray, end: np.floating) -> list[float]:
    """Integral from nodes[0] to end of each Lagrange polynomial over the nodes, by quadrature in float32:
    where levels lie close together k-diffusion's weights carry its rounding, and pictures depend on it."""
    from scipy import integrate

    def polynomial(at: float, j: int) -> float:
        product = 1.0
        for k in range(len(nodes)):
            if k != j:
                product *= (at - nodes[k]) / (nodes[j] - nodes[k])
        return product

    return [
        float(integrate.quad(polynomial, nodes[0], end, args=(j,), epsrel=1e-4)[0]) for j in range(len(nodes))
    ]


@sampler("ipndm")
def ipndm(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, max_order: int = 4
) -> Iterator[Step]:
    """Improved PNDM (Zhang & Chen 2022): Adams-Bashforth weights as for even steps."""
    slopes: _Slopes = []
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        slopes = [derivative(x, denoised, sigma), *slopes][:max_order]
        if following == 0:
            x = denoised
        else:
            x = x + (following - sigma) * _weighed(slopes, ADAMS_BASHFORTH[len(slopes) - 1])
        yield Step(i, x, denoised, sigma)


@sampler("ipndm_v")
def ipndm_v(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, max_order: int = 4
) -> Iterator[Step]:
    """Improved PNDM with weights that follow the lengths of the steps (Zhou et al. 2024, AMED-Solver)."""
    slopes: _Slopes = []
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        slopes = [derivative(x, denoised, sigma), *slopes][:max_order]
        if following == 0:
            x = denoised
        else:
            levels = sigmas[i - len(slopes) + 1 : i + 2].double().flip(0)
            lengths = [float(length) for length in levels[:-1] - levels[1:]]
            x = x + (following - sigma) * _weighed(slopes, _uneven_weights(lengths))
        yield Step(i, x, denoised, sigma)


def _uneven_weights(lengths: Sequence[float]) -> list[float]:
    """Weights for steps of these lengths, the coming one first, as AMED-Solver's code has them.

    That code departs from Adams-Bashforth for uneven steps: where the derivation multiplies
    (1 - h / (3 (h + h1))) by the ratio of lengths, it multiplies the fraction alone.
    """
    h, order = lengths[0], len(lengths)
    if order == 1:
        return [1.0]
    h1 = lengths[1]
    ratio = h / h1
    if order == 2:
        return [1 + ratio / 2, -ratio / 2]
    h2 = lengths[2]
    third = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    if order == 3:
        return [1 + ratio / 2 + third, -ratio / 2 - (1 + h1 / h2) * third, third * h1 / h2]
    h3 = lengths[3]
    share = (1 - h / (3 * (h + h1))) / 2
    share += (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    fourth = share * (h * (h + h1) * (h + h1 + h2)) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    spread = h1 * (h1 + h2) / (h2 * (h2 + h3))
    return [
        1 + ratio / 2 + third + fourth,
        -ratio / 2 - (1 + h1 / h2) * third - (1 + h1 / h2 + spread) * fourth,
        third * h1 / h2 + (h1 / h2 + spread * (1 + h2 / h3)) * fourth,
        -fourth * spread * h1 / h2,
    ]


@sampler("deis")
def deis(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, max_order: int = 3) -> Iterator[Step]:
    """tAB-DEIS (Zhang & Chen 2022, https://arxiv.org/abs/2204.13902): slopes are interpolated in the time of
    a linear VP process."""
    slopes: _Slopes = []
    process = _LinearVP()
    times = process.times(sigmas)
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        slopes = [derivative(x, denoised, sigma), *slopes][:max_order]
        if following == 0 or len(slopes) == 1:
            x = x + (following - sigma) * slopes[0]
        else:
            nodes = times[i - len(slopes) + 1 : i + 1].flip(0)
            x = x + _weighed(slopes, process.weights(nodes, times[i + 1]))
        yield Step(i, x, denoised, sigma)


class _LinearVP:
    """The VP process with linear beta whose sigma is 0.002 at time 0.001 and 80 at time 1."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, eps: float = 1e-3) -> None:
        low, high = math.log(sigma_min**2 + 1), math.log(sigma_max**2 + 1)
        self.slope = 2 * (low / eps - high) / (eps - 1)
        self.start = high - 0.5 * self.slope

    def times(self, sigmas: Tensor) -> Tensor:
        log = (sigmas**2 + 1).log()
        return ((self.start**2 + 2 * self.slope * log).sqrt() - self.start) / self.slope

    def weights(self, nodes: Tensor, end: Tensor, samples: int = 10000) -> list[float]:
        """∫ L_j(t) dsigma for the Lagrange polynomials over `nodes` (the newest first), as a sum."""
        times = torch.linspace(float(nodes[0]), float(end), samples)
        kept = (-0.5 * times**2 * self.slope - times * self.start).exp()
        rate = 0.5 * (times * self.slope + self.start) / (kept * (1 - kept)).sqrt()
        width = (float(end) - float(nodes[0])) / samples
        weights: list[float] = []
        for j in range(len(nodes)):
            polynomial = torch.ones_like(times)
            for k in range(len(nodes)):
                if k != j:
                    polynomial = polynomial * (times - nodes[k]) / (nodes[j] - nodes[k])
            weights.append(float((rate * polynomial).sum()) * width)
        return weights


@sampler("res_multistep", noise="reseeded", eta=0.0)
@sampler("res_multistep_cfg_pp", noise="reseeded", needs_uncond=True, eta=0.0, cfg_pp=True)
@sampler("res_multistep_ancestral", noise="reseeded")
@sampler("res_multistep_ancestral_cfg_pp", noise="reseeded", needs_uncond=True, cfg_pp=True)
def res_multistep(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    cfg_pp: bool = False,
) -> Iterator[Step]:
    """RES, second order multistep (Zhang et al. 2023, https://arxiv.org/abs/2308.02157)."""
    previous: Tensor | None = None
    reached = sigmas[0]
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        target = unconditional(denoise) if cfg_pp else denoised
        down, up = ancestral_levels(sigma, following, eta)
        if previous is None or down == 0:
            x = denoised + derivative(x, target, sigma) * down
        else:
            h = sigma.log() - down.log()
            offset = (reached.log() - sigmas[i - 1].log()) / h
            phi_1 = (-h).expm1() / -h
            phi_2 = (phi_1 - 1) / -h
            older = (phi_2 / offset).nan_to_num(nan=0.0)
            newer = (phi_1 - phi_2 / offset).nan_to_num(nan=0.0)
            x = (-h).exp() * (x + (denoised - target)) + h * (newer * target + older * previous)
        if following > 0 and eta > 0:
            x = x + noise(sigma, following) * s_noise * up
        previous, reached = target, down
        yield Step(i, x, denoised, sigma)


@sampler("gradient_estimation")
@sampler("gradient_estimation_cfg_pp", needs_uncond=True, cfg_pp=True)
def gradient_estimation(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, ge_gamma: float = 2.0, cfg_pp: bool = False
) -> Iterator[Step]:
    """Permenter & Yuan 2023 (https://arxiv.org/abs/2306.04848): Euler with an extrapolated slope."""
    previous: Tensor | None = None
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(x, sigma)
        slope = derivative(x, unconditional(denoise) if cfg_pp else denoised, sigma)
        if following == 0:
            x = denoised
        else:
            x = denoised + slope * following if cfg_pp else x + slope * (following - sigma)
            if previous is not None:
                x = x + (ge_gamma - 1) * (slope - previous) * (following - sigma)
        previous = slope
        yield Step(i, x, denoised, sigma)
