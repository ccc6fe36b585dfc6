"""Where on the noise axis a sampler stops: every schedule, by name, as sigmas that descend to 0.

Those that `@schedule` registers depend on the model alone and are offered by name; the others are plain
functions of numbers that nodes call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.sampling.samplers.registry import Method, said
from loraloom.sampling.types import Parametrisation, Schedule

LARGEST_MEASURED = 4300
"""Tokens of a picture up to which Flux.2's shift depends on the steps."""

_SCHEDULES: dict[str, Schedule] = {}


def schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Offer a schedule under a name; the order of definition is the order that editors show.

    Raises ValueError where the name is taken."""

    def register(function: Schedule) -> Schedule:
        if (other := _SCHEDULES.get(name)) is not None:
            raise ValueError(f"two schedules are called {name!r}: {said(other)} and {said(function)}")
        _SCHEDULES[name] = function
        return function

    return register


def schedule_names() -> tuple[str, ...]:
    return tuple(_SCHEDULES)


def sigmas_for(
    parametrisation: Parametrisation,
    name: str,
    steps: int,
    denoise: float = 1.0,
    *,
    method: Method | None = None,
) -> Tensor:
    """Sigmas (steps + 1,) of a named schedule; with denoise < 1, the end of a longer one.

    method: the sampler that will run on them, where it wants its levels spaced in its own way.
    Empty when denoise is 0: there is nothing to sample. Raises InputError for an unknown name.
    """
    if name not in _SCHEDULES:
        raise InputError(f"Unknown scheduler {name!r}; known are: {', '.join(_SCHEDULES)}.")
    if denoise <= 0.0:
        return torch.zeros(0)
    total = steps if denoise > 0.9999 else int(steps / denoise)
    if method is not None and method.drops_penultimate:
        sigmas = _SCHEDULES[name](parametrisation, total + 1)
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    else:
        sigmas = _SCHEDULES[name](parametrisation, total)
    return sigmas if denoise > 0.9999 else sigmas[-(steps + 1) :]


def between(sigmas: Tensor, start: int = 0, end: int | None = None, *, full_denoise: bool = True) -> Tensor:
    """The part of a schedule from step `start` to step `end`.

    full_denoise: end at 0 even where the schedule would go on. Empty when `start` lies behind its end.
    """
    if end is not None and end < len(sigmas) - 1:
        sigmas = sigmas[: end + 1].clone()
        if full_denoise:
            sigmas[-1] = 0.0
    return sigmas[start:] if start < len(sigmas) - 1 else sigmas[:0]


def _ending_in_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas.float(), torch.zeros(1)])


def _is_zero(sigma: Tensor) -> bool:
    return math.isclose(float(sigma), 0.0, abs_tol=1e-5)


# ---- by name, of a model --------------------------------------------------------------------------------


@schedule("simple")
def simple(parametrisation: Parametrisation, steps: int) -> Tensor:
    """Every n-th entry of the table, counted from its noisy end."""
    table = parametrisation.sigmas
    stride = len(table) / steps
    return _ending_in_zero(torch.stack([table[-(1 + int(i * stride))] for i in range(steps)]))


@schedule("sgm_uniform")
def sgm_uniform(parametrisation: Parametrisation, steps: int) -> Tensor:
    """Even in time with the last level left out (Stability's generative models)."""
    start, end = _time_range(parametrisation)
    return _ending_in_zero(parametrisation.sigma(torch.linspace(start, end, steps + 1)[:-1]))


@schedule("karras")
def karras_of(parametrisation: Parametrisation, steps: int) -> Tensor:
    return karras(steps, parametrisation.sigma_min, parametrisation.sigma_max)


@schedule("exponential")
def exponential_of(parametrisation: Parametrisation, steps: int) -> Tensor:
    return exponential(steps, parametrisation.sigma_min, parametrisation.sigma_max)


@schedule("ddim_uniform")
def ddim_uniform(parametrisation: Parametrisation, steps: int) -> Tensor:
    """Every n-th entry of the table from its second one (DDIM); may hold more steps than asked."""
    table = parametrisation.sigmas
    tail = [torch.tensor(0.0)]
    if _is_zero(table[1]):
        steps += 1
        tail = []
    stride = max(len(table) // steps, 1)
    return torch.stack([*table[1::stride].flip(0).unbind(), *tail]).float()


@schedule("beta")
def beta_of(parametrisation: Parametrisation, steps: int) -> Tensor:
    return beta(parametrisation, steps)


@schedule("normal")
def normal(parametrisation: Parametrisation, steps: int) -> Tensor:
    """Even in time, both ends included."""
    start, end = _time_range(parametrisation)
    if _is_zero(parametrisation.sigma(torch.tensor(end))):
        return parametrisation.sigma(torch.linspace(start, end, steps + 1)).float()
    return _ending_in_zero(parametrisation.sigma(torch.linspace(start, end, steps)))


@schedule("linear_quadratic")
def linear_quadratic_of(parametrisation: Parametrisation, steps: int) -> Tensor:
    return linear_quadratic(steps, parametrisation.sigma_max)


@schedule("kl_optimal")
def kl_optimal_of(parametrisation: Parametrisation, steps: int) -> Tensor:
    return kl_optimal(steps, parametrisation.sigma_min, parametrisation.sigma_max)


def _time_range(parametrisation: Parametrisation) -> tuple[float, float]:
    start = parametrisation.timestep(torch.tensor(parametrisation.sigma_max))
    end = parametrisation.timestep(torch.tensor(parametrisation.sigma_min))
    return float(start), float(end)


# ---- of numbers -----------------------------------------------------------------------------------------


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Even in sigma^(1/rho) (Karras et al. 2022, equation 5)."""
    ramp = torch.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _ending_in_zero((high + ramp * (low - high)) ** rho)


def exponential(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Even in log sigma."""
    return _ending_in_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps).exp())


def polyexponential(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """A polynomial of degree rho in log sigma."""
    ramp = torch.linspace(1, 0, steps) ** rho
    low, high = math.log(sigma_min), math.log(sigma_max)
    return _ending_in_zero((ramp * (high - low) + low).exp())


def laplace(steps: int, sigma_min: float, sigma_max: float, mu: float = 0.0, beta: float = 0.5) -> Tensor:
    """Quantiles of a Laplace distribution of log sigma (Hang et al. 2024), kept within the range."""
    centred = 0.5 - torch.linspace(0, 1, steps)
    log_sigmas = mu - beta * centred.sign() * (1 - 2 * centred.abs() + 1e-5).log()
    return log_sigmas.exp().clamp(min=sigma_min, max=sigma_max)


def variance_preserving(
    steps: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3
) -> Tensor:
    """The continuous VP schedule (Song et al. 2021), even in time."""
    time = torch.linspace(1, eps_s, steps)
    return _ending_in_zero(((beta_d * time**2 / 2 + beta_min * time).exp() - 1).sqrt())


def beta(parametrisation: Parametrisation, steps: int, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Table entries at quantiles of a beta distribution (Lee et al. 2024); repeated ones are merged."""
    import numpy as np
    from scipy import stats

    table = parametrisation.sigmas
    quantiles = 1 - np.linspace(0, 1, steps, endpoint=False)
    places = np.rint(stats.beta.ppf(quantiles, alpha, beta) * (len(table) - 1)).astype(int).tolist()
    kept = [place for i, place in enumerate(places) if i == 0 or place != places[i - 1]]
    return _ending_in_zero(table[kept])


def linear_quadratic(steps: int, sigma_max: float, threshold: float = 0.025) -> Tensor:
    """First half linear down to 1 - threshold, then quadratic to 0 (Movie Gen, 2024)."""
    if steps == 1:
        return torch.tensor([sigma_max, 0.0])
    linear = steps // 2
    rest = steps - linear
    gap = linear - threshold * steps
    square = gap / (linear * rest**2)
    slope = threshold / linear - 2 * gap / rest**2
    offset = square * linear**2
    rising = [i * threshold / linear for i in range(linear)]
    rising += [square * i**2 + slope * i + offset for i in range(linear, steps)]
    return torch.tensor([*(1.0 - value for value in rising), 0.0]) * sigma_max


def kl_optimal(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Even in the angle whose tangent is sigma (Sabour et al. 2024, appendix on the KL bound)."""
    ramp = torch.arange(steps, dtype=torch.float32) / max(steps - 1, 1)
    angles = ramp * math.atan(sigma_min) + (1 - ramp) * math.atan(sigma_max)
    return _ending_in_zero(angles.tan())


def flux2(steps: int, tokens: int) -> Tensor:
    """Levels of a flow that is shifted by the tokens of the picture and, up to 4300 of them, by the steps: as
    Black Forest Labs measured it for Flux.2 (their `compute_empirical_mu`)."""
    many = 0.00016927 * tokens + 0.45666666
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = 0.0 if tokens > LARGEST_MEASURED else (many - few) / 190
    shift = math.exp(many + slope * (steps - 200))
    return shift / (shift + (1 / torch.linspace(1, 0, steps + 1) - 1))


def log_linear(levels: Sequence[float], count: int) -> Tensor:
    """`count` levels interpolated between given descending ones, linearly in log sigma."""
    import numpy as np

    ramp = np.linspace(0, 1, len(levels))
    wanted = np.linspace(0, 1, count)
    logs = np.log(np.array(levels[::-1], dtype=np.float64))
    return torch.tensor(np.exp(np.interp(wanted, ramp, logs))[::-1].copy(), dtype=torch.float32)


def sd_turbo(parametrisation: Parametrisation, steps: int, denoise: float = 1.0) -> Tensor:
    """Every hundredth level, for models distilled to few steps (Sauer et al. 2023)."""
    first = 10 - int(10 * denoise)
    places = (torch.arange(1, 11) * 100 - 1).flip(0)[first : first + steps]
    return _ending_in_zero(parametrisation.sigma(places))


ALIGN_YOUR_STEPS = {
    "SD1": (14.6146, 6.4746, 3.8637, 2.6946, 1.8842, 1.3944, 0.9643, 0.6524, 0.3977, 0.1515, 0.0292),
    "SDXL": (14.6146, 6.3184, 3.7682, 2.1811, 1.3405, 0.8621, 0.5550, 0.3799, 0.2332, 0.1114, 0.0292),
    "SVD": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Levels found for ten steps of each model (Sabour et al. 2024)."""


def align_your_steps(model: str, steps: int, denoise: float = 1.0) -> Tensor:
    """Levels optimised for a model, interpolated for other counts. Raises InputError for an unknown model."""
    if model not in ALIGN_YOUR_STEPS:
        known = ", ".join(ALIGN_YOUR_STEPS)
        raise InputError(f"There are no optimised levels for {model!r}; there are some for {known}.")
    if denoise <= 0.0:
        return torch.zeros(0)
    kept = round(steps * denoise) if denoise < 1.0 else steps
    levels = ALIGN_YOUR_STEPS[model]
    sigmas = torch.tensor(levels) if steps + 1 == len(levels) else log_linear(levels, steps + 1)
    sigmas = sigmas[-(kept + 1) :]
    sigmas[-1] = 0.0
    return sigmas
