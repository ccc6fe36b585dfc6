"""How much of a LoRA survives being merged into weights of 8 bits: ‖Q(W+Δ) − W − Δ‖ / ‖Δ‖.

W are stored values (so Q(W) = W). Differences below half a step of the storage type vanish, others are
rounded to it: a weak LoRA on an fp8 base can be lost entirely. Such a base therefore keeps its weights and
runs low-rank changes beside them, in which nothing is lost; this says what that spares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from loraloom.lora.effect import Read
from loraloom.lora.receipt import Survival
from loraloom.weights.patch import Factors, Rows

EIGHT_BITS = frozenset(
    {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int8}
)
SAMPLED_ROWS = 64
SAMPLED_WEIGHTS = 24


class Factored(Protocol):
    @property
    def rows(self) -> Rows: ...

    def factors(self) -> Factors | None: ...


def quantise(values: Tensor, storage: torch.dtype) -> Tensor:
    """Values rounded to a storage type and back; int8 with one scale per row."""
    if storage == torch.int8:
        scale = values.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        return (values / scale).round() * scale
    limit = torch.finfo(storage).max
    return values.clamp(-limit, limit).to(storage).to(torch.float32)


def loss_of(weight: Tensor, delta: Tensor, storage: torch.dtype) -> float:
    """‖Q(W+Δ) − Q(W) − Δ‖ / ‖Δ‖ for one matrix in float32."""
    error = quantise(weight + delta, storage) - quantise(weight, storage) - delta
    return float(error.norm() / delta.norm()) if bool(delta.any()) else 0.0


def survival_of(
    component: str, patches: Mapping[str, Sequence[Factored]], read: Read, strength: float = 1.0
) -> Survival | None:
    """What merging would lose, by a sample of the weights that are stored in 8 bits; None where none is."""
    lost = total = 0.0
    storage: torch.dtype | None = None
    names = list(patches)[:: max(1, len(patches) // SAMPLED_WEIGHTS)]
    sampled = 0
    for name in names:
        stored = read(name)
        if stored.dtype not in EIGHT_BITS or stored.dim() != 2:
            continue
        for patch in patches[name]:
            factors = patch.factors()
            if factors is None:
                continue
            begin, end = patch.rows or (0, len(stored))
            rows = torch.arange(begin, end, max(1, (end - begin) // SAMPLED_ROWS))
            weight = stored[rows].to(torch.float32)
            delta = strength * (factors.up[rows - begin] @ factors.down)
            error = quantise(weight + delta, stored.dtype) - weight - delta
            lost, total = lost + float(error.norm()) ** 2, total + float(delta.norm()) ** 2
            storage = stored.dtype
            sampled += 1
    if storage is None or total == 0:
        return None
    return Survival(component, str(storage).removeprefix("torch."), (lost / total) ** 0.5, sampled)
