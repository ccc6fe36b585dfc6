"""SA-Solver (Xue et al. 2023, https://arxiv.org/abs/2309.05019): stochastic Adams, predictor and corrector.

Times are half-log-SNRs; `tau` says how stochastic a step is (0: the ODE, 1: the reverse SDE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.sampling.samplers.levels import half_log_snr, intervals, signal, with_signal
from loraloom.sampling.samplers.registry import sampler
from loraloom.sampling.types import Denoiser, Noise, Parametrisation, Step

Tau = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class TauBetween:
    """Stochasticity eta while sigma lies between two levels, else 0."""

    high: float
    low: float
    eta: float = 1.0

    def __call__(self, sigma: float) -> float:
        return self.eta if self.low <= sigma <= self.high else 0.0

    @staticmethod
    def of_range(p: Parametrisation, start_percent: float, end_percent: float, eta: float) -> TauBetween:
        """The same between two points of the sampling range."""
        return TauBetween(p.percent_to_sigma(start_percent), p.percent_to_sigma(end_percent), eta)


@sampler("sa_solver", noise="reseeded")
@sampler("sa_solver_pece", noise="reseeded", use_pece=True)
def sa_solver(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_noise: float = 1.0,
    predictor_order: int = 3,
    corrector_order: int = 4,
    use_pece: bool = False,
    simple_order_2: bool = False,
    tau: Tau | None = None,
) -> Iterator[Step]:
    """tau: sigma → stochasticity of the step to it; by default 1 between 20 % and 80 % of the range.

    use_pece: evaluate again after each correction. simple_order_2: the paper's shorter second-order weights.
    """
    p = denoise.parametrisation
    sigmas = with_signal(p, sigmas)
    adams = _Adams(p, sigmas, simple_order_2)
    stochasticity = tau or TauBetween.of_range(p, 0.2, 0.8, 1.0)
    left = len(sigmas) - 1 if sigmas[-1] == 0 else 10 * len(sigmas)
    predicted, known = x, list[Tensor]()
    strength, drawn = 0.0, torch.zeros(())
    for i, sigma, following in intervals(sigmas):
        denoised = denoise(predicted, sigma)
        known = [*known, denoised][-max(predictor_order, corrector_order) :]
        if i == 0 or (following == 0 and not use_pece):
            x = predicted
        else:
            order = min(corrector_order, len(known), left - i)
            x = adams.move(x, known[-order:], newest=i, start=i - 1, tau=strength) + drawn
            if use_pece:
                denoised = denoise(x, sigma)
                known[-1] = denoised
        if following == 0:
            predicted = denoised
        else:
            order = min(predictor_order, len(known), left - 1 - i)
            strength = stochasticity(float(following))
            predicted = adams.move(x, known[-order:], newest=i, start=i, tau=strength)
            drawn = torch.zeros(())
            if strength > 0 and s_noise > 0:
                up = following * (-2 * strength**2 * adams.length(i)).expm1().neg().sqrt() * s_noise
                drawn = noise(sigma, following) * up
                predicted = predicted + drawn
        yield Step(i, predicted, denoised, sigma)


class _Adams:
    """Stochastic Adams steps between neighbouring levels, from any run of predictions at levels."""

    def __init__(self, p: Parametrisation, sigmas: Tensor, simple_order_2: bool) -> None:
        self.p, self.sigmas, self.simple = p, sigmas, simple_order_2
        self.times = half_log_snr(p, sigmas)

    def length(self, start: int) -> Tensor:
        return self.times[start + 1] - self.times[start]

    def move(self, x: Tensor, known: list[Tensor], *, newest: int, start: int, tau: float) -> Tensor:
        """x from level `start` to the next, without noise; `known` are the predictions up to `newest`."""
        here, there = self.sigmas[start], self.sigmas[start + 1]
        window = self.times[newest - len(known) + 1 : newest + 1].double() - self.times[start].double()
        h = float(self.times[start + 1].double() - self.times[start].double())
        mul = 1 + tau**2
        if self.simple and len(known) == 2:
            weights = _simple_weights(window, h, mul, corrects=newest > start)
        else:
            weights = _weights(window, h, mul)
        shrink = there / here * (-(tau**2) * self.length(start)).exp()
        alpha = signal(self.p, there)
        return shrink * x + alpha * sum(w * m for w, m in zip(weights, known, strict=True))


def _weights(window: Tensor, h: float, mul: float) -> list[float]:
    """∫ mul · exp(mul (t - h)) · L_j(t) dt over [0, h] for the Lagrange polynomials over `window`
    (the paper's equation 13), by partial integration of the powers of t."""
    moments: list[float] = []
    for power in range(len(window)):
        if power == 0:
            moments.append(-math.expm1(-mul * h))
        else:
            moments.append(h**power - power / mul * moments[-1])
    powers = torch.stack([window**power for power in range(len(window))])
    right = torch.tensor(moments, dtype=torch.float64, device=window.device)
    return torch.linalg.solve(powers, right).tolist()


def _simple_weights(window: Tensor, h: float, mul: float, *, corrects: bool) -> list[float]:
    """Second order with a shorter formula: (older, newer)."""
    whole = -math.expm1(-mul * h)
    if corrects:
        return [whole - 0.5 * mul * h, 0.5 * mul * h]
    older = 0.5 * mul * h**2 / float(window[0])
    return [older, whole - older]
