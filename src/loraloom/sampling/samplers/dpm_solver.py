"""DPM-Solver (Lu et al. 2022, https://arxiv.org/abs/2206.00927) with fixed and with adaptive steps.

Time is t = -log sigma; the solvers of order 1, 2 and 3 share evaluations of eps within a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loraloom.sampling.samplers.levels import ancestral_levels
from loraloom.sampling.samplers.registry import sampler
from loraloom.sampling.types import Denoiser, Noise, Step

Eps = Callable[[Tensor, Tensor], Tensor]


def _sigma(t: Tensor) -> Tensor:
    return t.neg().exp()


def _first(x: Tensor, eps: Tensor, t: Tensor, following: Tensor) -> Tensor:
    return x - _sigma(following) * (following - t).expm1() * eps


def _second(x: Tensor, eps: Tensor, eps_1: Tensor, t: Tensor, following: Tensor, r1: float) -> Tensor:
    step = (following - t).expm1() * _sigma(following)
    return x - step * eps - step / (2 * r1) * (eps_1 - eps)


def _third(evaluate: Eps, x: Tensor, eps: Tensor, eps_1: Tensor, t: Tensor, following: Tensor) -> Tensor:
    """`eps_1` is at a third of the way; one more evaluation follows at two thirds."""
    h, r1, r2 = following - t, 1 / 3, 2 / 3
    at = t + r2 * h
    growth = (r2 * h).expm1()
    ahead = x - _sigma(at) * (growth * eps + (r2 / r1) * (growth / (r2 * h) - 1) * (eps_1 - eps))
    eps_2 = evaluate(ahead, at)
    return x - _sigma(following) * (h.expm1() * eps + (h.expm1() / h - 1) / r2 * (eps_2 - eps))


def _part_way(evaluate: Eps, x: Tensor, eps: Tensor, t: Tensor, following: Tensor, r1: float) -> Tensor:
    at = t + r1 * (following - t)
    return evaluate(_first(x, eps, t, at), at)


def _range(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """First and last time; the last level above 0 ends the path."""
    last = sigmas[-2] if sigmas[-1] == 0 else sigmas[-1]
    return -sigmas[0].log(), -last.log()


def _evaluator(denoise: Denoiser) -> Eps:
    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        sigma = _sigma(t)
        return (x - denoise(x, sigma)) / sigma

    return evaluate


@sampler("dpm_fast", noise="reseeded")
def dpm_fast(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 0.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver-fast: even steps in t of order 3, with as many evaluations as `sigmas` has intervals."""
    budget = len(sigmas) - 1
    start, end = _range(sigmas)
    orders = [3] * (budget // 3 - 1) + [2, 1] if budget % 3 == 0 else [3] * (budget // 3) + [budget % 3]
    times = torch.linspace(float(start), float(end), len(orders) + 1, device=sigmas.device)
    evaluate = _evaluator(denoise)
    for i, order in enumerate(orders):
        t, following = times[i], times[i + 1]
        down, up = _stochastic(t, following, end, eta)
        eps = evaluate(x, t)
        denoised = x - _sigma(t) * eps
        match order:
            case 1:
                x = _first(x, eps, t, down)
            case 2:
                x = _second(x, eps, _part_way(evaluate, x, eps, t, down, 1 / 2), t, down, 1 / 2)
            case _:
                x = _third(evaluate, x, eps, _part_way(evaluate, x, eps, t, down, 1 / 3), t, down)
        if eta:
            x = x + up * s_noise * noise(_sigma(t), _sigma(following))
        yield Step(i, x, denoised, _sigma(t))


def _stochastic(t: Tensor, following: Tensor, end: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    if not eta:
        return following, torch.zeros_like(following)
    down, _ = ancestral_levels(_sigma(t), _sigma(following), eta)
    reached = torch.minimum(end, -down.log())
    return reached, (_sigma(following) ** 2 - _sigma(reached) ** 2) ** 0.5


@dataclass
class _StepSize:
    """A PID controller of the step size (Söderlind 2003); errors enter as their inverses."""

    h: float
    weights: tuple[float, float, float]
    accept_safety: float
    inverse_errors: list[float] = field(default_factory=lambda: [])

    def accepts(self, error: float) -> bool:
        """Judge a step by its error (1 is the tolerance) and choose the next size."""
        inverse = 1 / (error + 1e-8)
        history = [inverse, *(self.inverse_errors or [inverse, inverse])]
        raw = math.prod(value**weight for value, weight in zip(history, self.weights, strict=True))
        factor = 1 + math.atan(raw - 1)
        accepted = factor >= self.accept_safety
        self.inverse_errors = history[:2] if accepted else history[1:]
        self.h *= factor
        return accepted


@sampler("dpm_adaptive", noise="reseeded", adaptive=True)
def dpm_adaptive(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver-12 and -23: steps as long as two orders agree. Yields a Step for each accepted one."""
    t, end = _range(sigmas)
    evaluate = _evaluator(denoise)
    scale = 1.5 if eta else order
    weights = ((pcoeff + icoeff + dcoeff) / scale, -(pcoeff + 2 * dcoeff) / scale, dcoeff / scale)
    size = _StepSize(abs(h_init), weights, accept_safety)
    previous, count = x, 0
    while t < end - 1e-5:
        following = torch.minimum(end, t + size.h)
        down, up = _stochastic(t, following, end, eta)
        eps = evaluate(x, t)
        if order == 2:
            low = _first(x, eps, t, down)
            high = _second(x, eps, _part_way(evaluate, x, eps, t, down, 1 / 2), t, down, 1 / 2)
        else:
            eps_1 = _part_way(evaluate, x, eps, t, down, 1 / 3)
            low = _second(x, eps, eps_1, t, down, 1 / 3)
            high = _third(evaluate, x, eps, eps_1, t, down)
        tolerance = (rtol * torch.maximum(low.abs(), previous.abs())).clamp(min=atol)
        error = torch.linalg.norm((low - high) / tolerance) / x.numel() ** 0.5
        if not size.accepts(float(error)):
            continue
        denoised = x - _sigma(t) * eps
        previous = low
        x = high + up * s_noise * noise(_sigma(t), _sigma(following)) if eta else high
        yield Step(count, x, denoised, _sigma(t))
        t, count = following, count + 1
