"""How networks speak of noise: eps, v, x0 and EDM predictions over a table or a range of sigmas, and flow.

Each is a small frozen value (hashable, so that a model handle can carry it); tables are computed once per
set of numbers. Sources: Ho et al. 2020 (eps), Salimans & Ho 2022 (v), Karras et al. 2022 (EDM), Lin et al.
2023 (zero terminal SNR), Luo et al. 2023 (LCM), Esser et al. 2024 (flow and its shift).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["eps", "v", "x0", "edm", "lcm", "img_to_img"]
"""What the network's output stands for; "img_to_img" is x0 from an input that is not scaled."""

BEFORE_THE_START = 999999999.9
"""Noise level of percent 0 for models of the variance-exploding view: above every sigma."""

ZERO_SNR_LEFTOVER = 4.8973451890853435e-08
"""Signal left at the last step of a zero-terminal-SNR table, where sigma would be infinite."""


@dataclass(frozen=True, slots=True)
class Table:
    """The discrete noise table of Stable Diffusion: betas linear between the square roots of two ends."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    zero_snr: bool = False

    @property
    def sigmas(self) -> Tensor:
        return _table_levels(self)[0]

    @property
    def log_sigmas(self) -> Tensor:
        return _table_levels(self)[1]


@lru_cache(maxsize=64)
def _table_levels(table: Table) -> tuple[Tensor, Tensor]:
    """Sigmas and their logarithms, each rounded once: half-way places in the table are told apart by the
    last bit of these."""
    roots = torch.linspace(table.beta_start**0.5, table.beta_end**0.5, table.steps, dtype=torch.float64)
    alphas_bar = torch.cumprod(1.0 - roots**2, dim=0)
    if table.zero_snr:
        alphas_bar = _zero_terminal_snr(alphas_bar)
    sigmas = ((1.0 - alphas_bar) / alphas_bar).sqrt()
    return sigmas.float(), sigmas.log().float()


def _zero_terminal_snr(alphas_bar: Tensor) -> Tensor:
    """Algorithm 1 of Lin et al. 2023: shift and stretch sqrt(alpha_bar) so that the last one is zero."""
    roots = alphas_bar.sqrt()
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    rescaled = roots**2
    rescaled[-1] = ZERO_SNR_LEFTOVER
    return rescaled


def _nearest_entry(logs: Tensor, sigma: Tensor) -> Tensor:
    """Index of the entry whose logarithm is nearest, for sigmas of any shape."""
    distance = sigma.log().reshape(1, -1) - logs.to(sigma.device)[:, None]
    return distance.abs().argmin(dim=0).reshape(sigma.shape)


def _between_entries(logs: Tensor, place: Tensor) -> Tensor:
    """The sigma at a fractional index, interpolated in the logarithm."""
    logs = logs.to(place.device)
    place = place.clamp(0, len(logs) - 1)
    low, high, part = place.floor().long(), place.ceil().long(), place.frac()
    return ((1 - part) * logs[low] + part * logs[high]).exp()


def _broadcast(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(sigma.shape[:1] + (1,) * (x.ndim - 1)) if sigma.ndim == 1 else sigma


class _Diffusion:
    """The variance-exploding view: x = x0 + sigma · noise; the network is fed x / sqrt(sigma² + data²)."""

    __slots__ = ()

    prediction: Prediction
    sigma_data: float

    @property
    def is_flow(self) -> bool:
        return False

    def timestep(self, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "img_to_img":
            return x
        sigma = _broadcast(sigma, x)
        return x / (sigma**2 + self.sigma_data**2) ** 0.5

    def denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        level = _broadcast(sigma, x)
        variance = level**2 + self.sigma_data**2
        match self.prediction:
            case "eps":
                return x - output * level
            case "x0" | "img_to_img":
                return output
            case "v":
                return x * self.sigma_data**2 / variance - output * level * self.sigma_data / variance**0.5
            case "edm":
                return x * self.sigma_data**2 / variance + output * level * self.sigma_data / variance**0.5
            case "lcm":
                return self._consistent(x, x - output * level, sigma)

    def _consistent(self, x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """Boundary scaling of latent consistency models (Luo et al. 2023, with their data deviation 0.5)."""
        time = _broadcast(self.timestep(sigma).float(), x) * 10.0
        data = 0.5
        return x0 * time / (time**2 + data**2) ** 0.5 + x * data**2 / (time**2 + data**2)

    def add_noise(self, latent: Tensor, noise: Tensor, sigma: Tensor, *, max_denoise: bool) -> Tensor:
        sigma = _broadcast(sigma, latent)
        return latent + noise * ((1.0 + sigma**2) ** 0.5 if max_denoise else sigma)

    def remove_noise_scale(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Discrete(_Diffusion):
    """A network trained on a table of noise levels; its time input is the (fractional) place in it."""

    prediction: Prediction = "eps"
    table: Table = Table()
    sigma_data: float = 1.0

    @property
    def sigmas(self) -> Tensor:
        return self.table.sigmas

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """The nearest place in the table, by the logarithm."""
        return _nearest_entry(self.table.log_sigmas, sigma)

    def sigma(self, timestep: Tensor) -> Tensor:
        return _between_entries(self.table.log_sigmas, timestep.float())

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return BEFORE_THE_START
        if percent >= 1.0:
            return 0.0
        return float(self.sigma(torch.tensor((1.0 - percent) * 999.0)))


@dataclass(frozen=True)
class Distilled(Discrete):
    """A network distilled to every `stride`-th level of its teacher's table (LCM: 50 of 1000)."""

    prediction: Prediction = "lcm"
    stride: int = 20

    @property
    def sigmas(self) -> Tensor:
        return self.table.sigmas[self.stride - 1 :: self.stride]

    @property
    def _logs(self) -> Tensor:
        return self.table.log_sigmas[self.stride - 1 :: self.stride]

    def timestep(self, sigma: Tensor) -> Tensor:
        return _nearest_entry(self._logs, sigma) * self.stride + (self.stride - 1)

    def sigma(self, timestep: Tensor) -> Tensor:
        return _between_entries(self._logs, (timestep.float() - (self.stride - 1)) / self.stride)


@dataclass(frozen=True)
class Continuous(_Diffusion):
    """A network trained on a range of noise levels.

    time: how the network is told the level: "log" (a quarter of its logarithm, EDM) or "angle" (the
        share of a right angle whose tangent it is, v).
    """

    prediction: Prediction = "edm"
    lowest: float = 0.002
    highest: float = 120.0
    sigma_data: float = 1.0
    time: Literal["log", "angle"] = "log"

    @property
    def sigmas(self) -> Tensor:
        return torch.linspace(math.log(self.lowest), math.log(self.highest), 1000).exp()

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        return 0.25 * sigma.log() if self.time == "log" else sigma.atan() / math.pi * 2

    def sigma(self, timestep: Tensor) -> Tensor:
        return (timestep / 0.25).exp() if self.time == "log" else (timestep * math.pi / 2).tan()

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return BEFORE_THE_START
        if percent >= 1.0:
            return 0.0
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return math.exp((high - low) * (1.0 - percent) + low)


class _Rectified:
    """The straight path x = (1 - sigma) · x0 + sigma · noise; the network gives noise - x0."""

    __slots__ = ()

    @property
    def is_flow(self) -> bool:
        return True

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        return x - output * _broadcast(sigma, x)

    def add_noise(self, latent: Tensor, noise: Tensor, sigma: Tensor, *, max_denoise: bool) -> Tensor:
        sigma = _broadcast(sigma, latent)
        return sigma * noise + (1.0 - sigma) * latent

    def remove_noise_scale(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1.0 - _broadcast(sigma, x))


@dataclass(frozen=True)
class Flow(_Rectified):
    """Flow whose times are shifted by a constant factor (SD3: 3, AuraFlow: 1.73 and multiplier 1)."""

    shift: float = 3.0
    multiplier: float = 1000.0
    steps: int = 1000

    def _shifted(self, time: Tensor) -> Tensor:
        return time if self.shift == 1.0 else self.shift * time / (1 + (self.shift - 1) * time)

    @property
    def sigmas(self) -> Tensor:
        return self.sigma(torch.arange(1, self.steps + 1) / self.steps * self.multiplier)

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * self.multiplier

    def sigma(self, timestep: Tensor) -> Tensor:
        return self._shifted(timestep / self.multiplier)

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        return float(self._shifted(torch.tensor(1.0 - percent, dtype=torch.float64)))


@dataclass(frozen=True)
class FluxFlow(_Rectified):
    """Flow whose times are shifted by exp(mu), as Flux does by the picture's size; time input in [0, 1]."""

    mu: float = 1.15
    steps: int = 10000

    def sigma(self, timestep: Tensor) -> Tensor:
        factor = math.exp(self.mu)
        return factor / (factor + (1 / timestep - 1))

    @property
    def sigmas(self) -> Tensor:
        return self.sigma(torch.arange(1, self.steps + 1) / self.steps)

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        return float(self.sigma(torch.tensor(1.0 - percent, dtype=torch.float64)))
