"""Rows of a batch that are the same: what a module makes of them is computed once."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def are_halves_alike(module: nn.Module, *inputs: Tensor | None) -> bool:
    """Whether the second half of a batch repeats the first in all inputs. Not where something is hooked into
    the module, which may tell the rows apart. Where they differ, that is seen at their first numbers."""
    given = [tensor for tensor in inputs if tensor is not None]
    rows = len(given[0])
    if rows < 2 or rows % 2 or any(len(tensor) != rows for tensor in given):
        return False
    alike = all(torch.equal(tensor[: rows // 2], tensor[rows // 2 :]) for tensor in given)
    return alike and not any(map(_is_hooked, module.modules()))


def twice(half: Tensor) -> Tensor:
    """A whole batch of its first half, in the same order in memory."""
    return torch.cat([half, half])


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
