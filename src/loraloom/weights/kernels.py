"""comfy-kitchen's CUDA kernels (the extra `cuda`) behind our products, where they are installed."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from torch import Tensor


@lru_cache(maxsize=1)
def _kitchen() -> Any:
    try:
        return importlib.import_module("comfy_kitchen")
    except (ImportError, OSError):  # not installed, or not for this system
        return None


def is_usable(x: Tensor) -> bool:
    """Whether the kernels are there for where x is."""
    return x.device.type == "cuda" and _kitchen() is not None


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, group: int) -> Tensor | None:
    """x (…, k) · weight (m, k)ᵀ of int8, x turned in groups (0: not) and rounded by row; None where the
    kernels are not usable."""
    if not is_usable(x):
        return None
    return _kitchen().int8_linear(
        x, weight, scale, None, x.dtype, convrot=bool(group), convrot_groupsize=group or 256
    )
