"""Layers that choose how to compute, beside the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from loraloom.weights.less_work import with_less_work


def filled(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.requires_grad_(False)


def chosen(module: nn.Module, order: torch.memory_format = torch.contiguous_format) -> Any:
    """The same module, free to choose."""
    made = copy.deepcopy(module)
    with_less_work(made)
    for parameter in made.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)
    return made


def work(call: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def close(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert (one - other).abs().max() <= 2e-5 * other.abs().max()
