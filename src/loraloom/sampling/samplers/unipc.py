"""UniPC (Zhao et al. 2023, https://arxiv.org/abs/2302.04867), predicting x0, in sigma's own coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from loraloom.sampling.samplers.registry import sampler
from loraloom.sampling.types import Denoiser, Noise, Step

LAST_LEVEL = 0.001
"""Stands for 0, where the half-log-SNR would be infinite."""


@sampler("uni_pc", drops_penultimate=True)
@sampler("uni_pc_bh2", drops_penultimate=True, variant="bh2")
def uni_pc(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise, variant: str = "bh1"
) -> Iterator[Step]:
    """Multistep UniPC of order 3 (lower at both ends), B(h) = h ("bh1") or exp(h) - 1 ("bh2")."""
    steps = len(sigmas) - 1
    levels = torch.where(sigmas == 0, LAST_LEVEL, sigmas).clone()
    places = _variance_preserving(levels)
    top = max(1, min(3, steps - 1))
    predictions: list[Tensor] = [denoise(x, levels[0])]
    for k in range(1, steps + 1):
        order = min(k, top, steps + 1 - k)
        move = _Move.between(places, k, order, variant)
        differences = move.differences(predictions)
        base = move.shrink * x - move.growth * predictions[0]
        x = base - move.scale * _sum(move.predictor(), differences)
        denoised = predictions[0]
        if k < steps:
            newest = denoise(x, levels[k])
            differences = [*differences, newest - predictions[0]]
            x = base - move.scale * _sum(move.corrector(), differences)
            predictions = [newest, *predictions][:top]
        elif sigmas[k] == 0:
            x = denoise.parametrisation.remove_noise_scale(x, levels[k])
        yield Step(k - 1, x, denoised, sigmas[k - 1])


def _variance_preserving(levels: Tensor) -> Tensor:
    """Levels as the published code sees them, through the signal of a VP process in float32.

    The rounding of 1 - alpha² moves the last level by 2 percent, which pictures show.
    """
    kept = 1 / (levels**2 + 1)
    log_alpha = 0.5 * kept.log()
    return ((1 - (2 * log_alpha).exp()).sqrt() / log_alpha.exp()).float()


def _sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor | float:
    return sum((weight * tensor for weight, tensor in zip(weights, tensors, strict=True)), 0.0)


class _Move:
    """The numbers of one step: rk are the places of known predictions in units of the step, r the system of
    equations (13) in the paper whose solutions weigh the differences."""

    def __init__(self, shrink: float, hh: float, places: Sequence[float], variant: str) -> None:
        self.shrink = shrink
        self.growth = float(torch.tensor(hh, dtype=torch.float64).expm1())
        self.scale = hh if variant == "bh1" else self.growth
        self.places = places
        order = len(places) + 1
        nodes = torch.tensor([*places, 1.0], dtype=torch.float64)
        self._rows = torch.stack([nodes**i for i in range(order)])
        self._right = torch.zeros(order, dtype=torch.float64)
        phi, factorial = self.growth / hh - 1, 1
        for i in range(order):
            self._right[i] = phi * factorial / self.scale
            factorial *= i + 2
            phi = phi / hh - 1 / factorial

    @staticmethod
    def between(levels: Tensor, k: int, order: int, variant: str) -> _Move:
        """From level k - 1 to level k with `order` known predictions."""
        times = [-float(level.double().log()) for level in levels[k - order : k + 1]]
        h = times[-1] - times[-2]
        places = [(time - times[-2]) / h for time in reversed(times[:-2])]
        return _Move(float(levels[k] / levels[k - 1]), -h, places, variant)

    def differences(self, predictions: Sequence[Tensor]) -> list[Tensor]:
        older = predictions[1 : len(self.places) + 1]
        return [(m - predictions[0]) / place for m, place in zip(older, self.places, strict=True)]

    def predictor(self) -> list[float]:
        if len(self.places) == 1:
            return [0.5]
        return torch.linalg.solve(self._rows[:-1, :-1], self._right[:-1]).tolist() if self.places else []

    def corrector(self) -> list[float]:
        return [0.5] if not self.places else torch.linalg.solve(self._rows, self._right).tolist()
