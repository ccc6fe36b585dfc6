"""Nodes that make noise schedules and cut them."""

from __future__ import annotations

import math
import re
from typing import Annotated

import torch

from loraloom.engine.node import Choice, Number, Text, node
from loraloom.errors import InputError
from loraloom.nodes.sockets import Model, Sigmas, Steps
from loraloom.sampling import schedules

SCHEDULERS = "sampling/custom_sampling/schedulers"
SIGMAS = "sampling/custom_sampling/sigmas"
EXTRA = "comfy_extras.nodes_custom_sampler"

Denoise = Annotated[float, Number(min=0.0, max=1.0, step=0.01)]
Level = Annotated[float, Number(min=0.0, max=5000.0, step=0.01, round=False)]
Shape = Annotated[float, Number(min=0.0, max=100.0, step=0.01, round=False)]
Exponent = Annotated[float, Number(min=0.0, max=50.0, step=0.01, round=False)]
Side = Annotated[int, Number(min=16, max=16384, step=1)]

SD_SIGMA_MAX = 14.614642
SD_SIGMA_MIN = 0.0291675


@node("BasicScheduler", category=SCHEDULERS, display_name="BasicScheduler", python_module=EXTRA)
def basic(
    *,
    model: Model,
    scheduler: Annotated[str, Choice(schedules.schedule_names)],
    steps: Steps = 20,
    denoise: Denoise = 1.0,
) -> Sigmas:
    """A schedule by its name, for a model; denoise below 1 gives the end of a longer one."""
    return schedules.sigmas_for(model.current_parametrisation(), scheduler, steps, denoise)


@node("KarrasScheduler", category=SCHEDULERS, display_name="KarrasScheduler", python_module=EXTRA)
def karras(
    steps: Steps = 20, sigma_max: Level = SD_SIGMA_MAX, sigma_min: Level = SD_SIGMA_MIN, rho: Shape = 7.0
) -> Sigmas:
    """The schedule of Karras et al. between two levels."""
    return schedules.karras(steps, sigma_min, sigma_max, rho)


@node("ExponentialScheduler", category=SCHEDULERS, display_name="ExponentialScheduler", python_module=EXTRA)
def exponential(
    steps: Steps = 20, sigma_max: Level = SD_SIGMA_MAX, sigma_min: Level = SD_SIGMA_MIN
) -> Sigmas:
    """Levels even in their logarithm."""
    return schedules.exponential(steps, *_positive(sigma_min, sigma_max))


@node(
    "PolyexponentialScheduler",
    category=SCHEDULERS,
    display_name="PolyexponentialScheduler",
    python_module=EXTRA,
)
def polyexponential(
    steps: Steps = 20, sigma_max: Level = SD_SIGMA_MAX, sigma_min: Level = SD_SIGMA_MIN, rho: Shape = 1.0
) -> Sigmas:
    """Levels whose logarithm follows a power of the step."""
    return schedules.polyexponential(steps, *_positive(sigma_min, sigma_max), rho)


@node("LaplaceScheduler", category=SCHEDULERS, display_name="LaplaceScheduler", python_module=EXTRA)
def laplace(
    *,
    steps: Steps = 20,
    sigma_max: Level = SD_SIGMA_MAX,
    sigma_min: Level = SD_SIGMA_MIN,
    mu: Annotated[float, Number(min=-10.0, max=10.0, step=0.1, round=False)] = 0.0,
    beta: Annotated[float, Number(min=0.0, max=10.0, step=0.1, round=False)] = 0.5,
) -> Sigmas:
    """Levels whose logarithm follows a Laplace distribution around mu."""
    return schedules.laplace(steps, sigma_min, sigma_max, mu, beta)


@node("VPScheduler", category=SCHEDULERS, display_name="VPScheduler", python_module=EXTRA)
def variance_preserving(
    steps: Steps = 20,
    beta_d: Level = 19.9,
    beta_min: Level = 0.1,
    eps_s: Annotated[float, Number(min=0.0, max=1.0, step=0.0001, round=False)] = 0.001,
) -> Sigmas:
    """The continuous variance-preserving schedule."""
    return schedules.variance_preserving(steps, beta_d, beta_min, eps_s)


@node("BetaSamplingScheduler", category=SCHEDULERS, display_name="BetaSamplingScheduler", python_module=EXTRA)
def beta(model: Model, steps: Steps = 20, alpha: Exponent = 0.6, beta: Exponent = 0.6) -> Sigmas:
    """Levels of a model at the quantiles of a beta distribution."""
    return schedules.beta(model.current_parametrisation(), steps, alpha, beta)


@node("SDTurboScheduler", category=SCHEDULERS, display_name="SDTurboScheduler", python_module=EXTRA)
def sd_turbo(
    model: Model, steps: Annotated[int, Number(min=1, max=10)] = 1, denoise: Denoise = 1.0
) -> Sigmas:
    """The levels that SD Turbo and SDXL Turbo were distilled to."""
    return schedules.sd_turbo(model.current_parametrisation(), steps, denoise)


@node(
    "AlignYourStepsScheduler",
    category=SCHEDULERS,
    v3=True,
    python_module="comfy_extras.nodes_align_your_steps",
)
def align_your_steps(
    *,
    model_type: Annotated[str, Choice(tuple(schedules.ALIGN_YOUR_STEPS))],
    steps: Steps = 10,
    denoise: Denoise = 1.0,
) -> Sigmas:
    """Levels that were optimised for a kind of model."""
    return schedules.align_your_steps(model_type, steps, denoise)


@node("Flux2Scheduler", category=SCHEDULERS, v3=True, python_module="comfy_extras.nodes_flux")
def flux2(
    steps: Annotated[int, Number(min=1, max=4096)] = 20,
    width: Side = 1024,
    height: Side = 1024,
) -> Sigmas:
    """Flux.2's levels for so many steps and a picture of this size."""
    return schedules.flux2(steps, round(width * height / 16**2))


@node(
    "ManualSigmas", category="_for_testing/custom_sampling", experimental=True, v3=True, python_module=EXTRA
)
def manual(sigmas: Annotated[str, Text(multiline=False)] = "1, 0.5") -> Sigmas:
    """Levels as they are written, such as “14.6, 3.1, 0.7, 0”."""
    return torch.tensor([float(number) for number in re.findall(r"[-+]?(?:\d*\.?\d+)", sigmas)])


@node(
    "SplitSigmas",
    category=SIGMAS,
    display_name="SplitSigmas",
    outputs=("high_sigmas", "low_sigmas"),
    python_module=EXTRA,
)
def split(sigmas: Sigmas, step: Annotated[int, Number(min=0, max=10000)] = 0) -> tuple[Sigmas, Sigmas]:
    """Divide a schedule after so many steps; the level there belongs to both parts."""
    return sigmas[: step + 1], sigmas[step:]


@node(
    "SplitSigmasDenoise",
    category=SIGMAS,
    display_name="SplitSigmasDenoise",
    outputs=("high_sigmas", "low_sigmas"),
    python_module=EXTRA,
)
def split_by_denoise(sigmas: Sigmas, denoise: Denoise = 1.0) -> tuple[Sigmas, Sigmas]:
    """Divide a schedule so that the second part has this share of the steps."""
    low = round(max(len(sigmas) - 1, 0) * denoise)
    return sigmas[:-low] if low else sigmas[:0], sigmas[-(low + 1) :]


@node("FlipSigmas", category=SIGMAS, display_name="FlipSigmas", python_module=EXTRA)
def flip(sigmas: Sigmas) -> Sigmas:
    """Turn a schedule around, to add noise step by step; a 0 at its new start becomes a small level."""
    flipped = sigmas.flip(0)
    if len(flipped) and flipped[0] == 0:
        flipped[0] = 0.0001
    return flipped


@node("SetFirstSigma", category=SIGMAS, display_name="SetFirstSigma", python_module=EXTRA)
def set_first(
    sigmas: Sigmas, sigma: Annotated[float, Number(min=0.0, max=20000.0, step=0.001, round=False)] = 136.0
) -> Sigmas:
    """Replace the first level of a schedule."""
    changed = sigmas.clone()
    changed[:1] = sigma
    return changed


SPACINGS = {
    "linear": lambda share: share,
    "cosine": lambda share: math.sin(share * math.pi / 2),
    "sine": lambda share: 1 - math.cos(share * math.pi / 2),
}


@node(
    "ExtendIntermediateSigmas", category=SIGMAS, display_name="ExtendIntermediateSigmas", python_module=EXTRA
)
def extend(
    *,
    sigmas: Sigmas,
    steps: Annotated[int, Number(min=1, max=100)] = 2,
    start_at_sigma: Annotated[float, Number(min=-1.0, max=20000.0, step=0.01, round=False)] = -1.0,
    end_at_sigma: Annotated[float, Number(min=0.0, max=20000.0, step=0.01, round=False)] = 12.0,
    spacing: Annotated[str, Choice(tuple(SPACINGS))],
) -> Sigmas:
    """Make several steps of each one that starts between two levels; -1 stands for no upper limit."""
    highest = math.inf if start_at_sigma < 0 else start_at_sigma
    shares = [SPACINGS[spacing](i / steps) for i in range(1, steps)]
    extended: list[float] = []
    levels = [float(level) for level in sigmas]
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        extended.append(level)
        if end_at_sigma <= level <= highest:
            extended += [level + share * (following - level) for share in shares]
    return torch.tensor([*extended, *levels[-1:]])


@node(
    "SamplingPercentToSigma",
    category=SIGMAS,
    display_name="SamplingPercentToSigma",
    outputs=("sigma_value",),
    python_module=EXTRA,
)
def percent_to_sigma(
    model: Model,
    sampling_percent: Annotated[float, Number(min=0.0, max=1.0, step=0.0001)] = 0.0,
    return_actual_sigma: bool = False,
) -> float:
    """The level at a point of the sampling range; the actual one stays within the model's range."""
    parametrisation = model.current_parametrisation()
    if return_actual_sigma and sampling_percent in (0.0, 1.0):
        return parametrisation.sigma_max if sampling_percent == 0.0 else parametrisation.sigma_min
    return parametrisation.percent_to_sigma(sampling_percent)


def _positive(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    if sigma_min <= 0 or sigma_max <= 0:
        raise InputError(f"sigma_min is {sigma_min} and sigma_max {sigma_max}; both must be above 0.")
    return sigma_min, sigma_max
