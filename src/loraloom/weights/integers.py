"""Products of rounded inputs and integer weights, as ComfyUI computes them for its int8 formats.

Each row of x is divided by its largest magnitude / levels, rounded half to even, and multiplied as integers;
the sums are exact, so that one scale for the row and one for the output column remain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loraloom.weights import kernels
from loraloom.weights.rotation import rotated

INT8_LEVELS = 127
"""What the largest magnitude of a row becomes."""

EXACT_COLUMNS = 1024
"""So many products of two bytes add up to 2²⁴ at most, up to which float32 has every whole number."""


def rounded_rows(x: Tensor, levels: int = INT8_LEVELS) -> tuple[Tensor, Tensor]:
    """x (n, k) → integers (n, k), int8, and the scale of each row (n, 1), float32."""
    scale = (x.abs().amax(-1, keepdim=True).float() / levels).clamp_min(1e-30)
    divisor = scale.to(x.dtype)
    divisor = torch.where(divisor == 0, torch.finfo(x.dtype).tiny, divisor)
    lowest = -levels - 1 if levels == INT8_LEVELS else -levels
    return (x / divisor).round_().clamp_(lowest, levels).to(torch.int8), scale


def turned_product(x: Tensor, weight: Tensor, scale: Tensor, group: int) -> Tensor:
    """As `integer_product`, x turned in groups of columns first (0: not); by comfy-kitchen's kernels
    where they are."""
    found = kernels.int8_linear(x, weight, scale, group)
    if found is not None:
        return found
    return integer_product(rotated(x, group) if group else x, weight, scale)


def integer_product(x: Tensor, weight: Tensor, scale: Tensor, levels: int = INT8_LEVELS) -> Tensor:
    """x (…, k) · weight (m, k)ᵀ, weight int8 with a scale () or (m, 1): (…, m) in x's type."""
    flat = x.reshape(-1, x.shape[-1])
    rounded, row_scale = rounded_rows(flat, levels)
    sums = exact_product(rounded, weight)
    sums *= row_scale * scale.float().reshape(1, -1)
    return sums.to(x.dtype).reshape(*x.shape[:-1], len(weight))


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, k) · weight (m, k)ᵀ of int8 as float32, each sum exact before it is converted."""
    if x.device.type == "cuda":
        return _on_cuda(x, weight)
    if x.device.type in ("cpu", "xpu"):
        return torch._int_mm(x, weight.T).float()  # pyright: ignore[reportPrivateUsage]
    return _by_floats(x, weight)


def _by_floats(x: Tensor, weight: Tensor) -> Tensor:
    """On devices that multiply no integers (Apple's): in pieces whose sums float32 holds exactly."""
    pieces = zip(x.split(EXACT_COLUMNS, 1), weight.split(EXACT_COLUMNS, 1), strict=True)
    sums = [(some.float() @ other.float().T).to(torch.int32) for some, other in pieces]
    return torch.stack(sums).sum(0, dtype=torch.int32).float()


def _on_cuda(x: Tensor, weight: Tensor) -> Tensor:
    """cuBLAS wants more than 16 rows and sizes that are multiples of 8: the rest is filled with zeros."""
    n, k, m = len(x), x.shape[1], len(weight)
    x = torch.nn.functional.pad(x, (0, -k % 8, 0, max(17 - n, 0)))
    weight = torch.nn.functional.pad(weight, (0, -k % 8, 0, -m % 8))
    return torch._int_mm(x, weight.T)[:n, :m].float()  # pyright: ignore[reportPrivateUsage]
