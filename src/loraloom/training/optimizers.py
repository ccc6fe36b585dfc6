"""Optimizers by name, the rate at each step, and an optimizer's state as plain tensors."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loraloom.errors import InputError
from loraloom.training.settings import OptimizerSettings

# Numbers of Prodigy's groups that change while training: its estimates of the distance, and its step.
_CHANGING = frozenset({"d", "d_max", "d_numerator", "k"})


def make_optimizer(
    network: Sequence[nn.Parameter], text: Sequence[nn.Parameter], settings: OptimizerSettings
) -> Optimizer:
    """The optimizer over both groups. Each group keeps its full rate as "peak".

    Raises InputError for numbers that the optimizer does not take."""
    groups: list[dict[str, Any]] = [{"params": list(network), "lr": settings.rate, "peak": settings.rate}]
    if text:
        rate = settings.text_rate or settings.rate / (1 if settings.name == "prodigy" else 2)
        groups.append({"params": list(text), "lr": rate, "peak": rate})
    betas, weight_decay = cast("tuple[float, float]", settings.betas), settings.weight_decay
    try:
        match settings.name:
            case "adamw":
                return torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay)
            case "adafactor":
                return torch.optim.Adafactor(groups, weight_decay=weight_decay)
            case "prodigy":
                return _prodigy(groups, betas, weight_decay)
            case "adamw8bit":
                return _eight_bit(groups, betas, weight_decay)
    except ValueError as error:
        raise InputError(f"optimizer: {error}") from error


def _prodigy(groups: list[dict[str, Any]], betas: tuple[float, float], weight_decay: float) -> Optimizer:
    from prodigyopt import Prodigy

    with redirect_stdout(sys.stderr):  # it says that its decay is decoupled; standard output is for results
        return Prodigy(groups, betas=betas, weight_decay=cast("int", weight_decay))  # a wrong hint of theirs


def _eight_bit(groups: list[dict[str, Any]], betas: tuple[float, float], weight_decay: float) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "optimizer.name adamw8bit needs the package bitsandbytes, which is not installed: "
            "`pip install bitsandbytes`, or use adamw"
        ) from error
    return AdamW8bit(groups, betas=betas, weight_decay=weight_decay)


def rate_factor(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The rate at `step` (from 0) as a share of its peak."""
    warm = math.ceil(settings.warm_up * steps)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    match settings.decay:
        case "constant":
            fall = 1.0
        case "linear":
            fall = 1.0 - progress
        case "cosine":
            fall = 0.5 + 0.5 * math.cos(math.pi * progress)
    return settings.lowest + (1.0 - settings.lowest) * fall


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Every group's rate as a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state as "index/name" → tensor; numbers become tensors of float64. Group numbers that change
    while training (Prodigy's d) are "group/index/name"."""
    found: dict[str, Tensor] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{index}/{name}"] = value
            elif isinstance(value, int | float):
                found[f"{index}/{name}/number"] = torch.tensor(value, dtype=torch.float64)
    for index, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name in _CHANGING:
                found[f"group/{index}/{name}"] = torch.tensor(value, dtype=torch.float64)
    return found


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        place, _, name = key.partition("/")
        if place == "group":
            index, _, name = name.partition("/")
            number = float(value)
            optimizer.param_groups[int(index)][name] = int(number) if name == "k" else number
        elif name.endswith("/number"):
            number = float(value)
            kept = int(number) if number.is_integer() and name == "step/number" else number
            optimizer.state[parameters[int(place)]][name.removesuffix("/number")] = kept
        else:
            parameter = parameters[int(place)]
            on_cpu = name == "step"
            optimizer.state[parameter][name] = value if on_cpu else value.to(parameter.device)
