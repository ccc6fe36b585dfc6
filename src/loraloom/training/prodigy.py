"""Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101): Adam that finds its own rate; set `rate` to 1.

d estimates the distance to the solution from the products of gradients and the way walked so far; it only
grows, and multiplies the rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FIRST_DISTANCE = 1e-6


class Prodigy(Optimizer):
    """AdamW steps of size lr · d. All groups share d; a group's lr tells its share of the rate."""

    CHANGING = ("d", "numerator")
    """Numbers of a group that change while training."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": 1.0,
            "betas": betas,
            "weight_decay": weight_decay,
            "eps": eps,
            "d": FIRST_DISTANCE,
            "numerator": 0.0,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; the gradients are those of the last backward pass."""
        loss = None if closure is None else closure()
        first = self.param_groups[0]
        d, decay = float(first["d"]), float(first["betas"][1]) ** 0.5
        numerator, denominator = float(first["numerator"]) * decay, 0.0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    product, size = self._gather(parameter, parameter.grad, group, d, decay)
                    numerator, denominator = numerator + product, denominator + size
        d_new = max(d, numerator / denominator) if denominator > 0 else d
        for group in self.param_groups:
            group["numerator"], group["d"] = numerator, d_new
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group, d_new)
        return loss

    def _gather(
        self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], d: float, decay: float
    ) -> tuple[float, float]:
        """Update the moments; this parameter's part of the estimate's numerator and denominator."""
        state = self.state[parameter]
        if not state:
            state["first"] = parameter.detach().clone()
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
            state["sum"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        rate = d * group["lr"]
        product = rate * d * float((gradient * (state["first"] - parameter)).sum()) * (1 - decay)
        state["mean"].mul_(beta1).add_(gradient, alpha=d * (1 - beta1))
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=d * d * (1 - beta2))
        state["sum"].mul_(decay).add_(gradient, alpha=d * rate * (1 - decay))
        return product, float(state["sum"].abs().sum())

    def _move(self, parameter: Tensor, group: dict[str, Any], d: float) -> None:
        state = self.state[parameter]
        if group["weight_decay"]:
            parameter.mul_(1 - group["weight_decay"] * d * group["lr"])
        parameter.addcdiv_(state["mean"], state["square"].sqrt() + d * group["eps"], value=-d * group["lr"])
