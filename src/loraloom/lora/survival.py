"""How a LoRA is put on a quantised base, and how much of it storing the sum again would lose:
‖Q(W+Δ) − W − Δ‖ / ‖Δ‖.

W are the stored values. Differences below half a step of the format vanish, others are rounded to it: a weak
LoRA on an fp8 base can be lost entirely. Such a base therefore keeps its weights and runs low-rank changes
beside them, in which nothing is lost; a weight with another change is widened. This says what that spares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from loraloom.lora.effect import Quantised
from loraloom.lora.receipt import Survival
from loraloom.weights.packed import Packed
from loraloom.weights.patch import Factors, Rows

SAMPLED_ROWS = 64
SAMPLED_WEIGHTS = 24


class Factored(Protocol):
    @property
    def rows(self) -> Rows: ...

    def factors(self) -> Factors | None: ...


def survival_of(
    component: str, patches: Mapping[str, Sequence[Factored]], quantised: Quantised, strength: float = 1.0
) -> Survival | None:
    """Which way each quantised weight takes, and what requantising would lose; None where none is so."""
    stored = {name: packed for name in patches if (packed := quantised(name)) is not None}
    beside = [name for name in stored if len(stored[name].shape) == 2 and _has_factors(patches[name])]
    if not stored:
        return None
    lost = total = 0.0
    sampled = 0
    for name in beside[:: max(1, len(beside) // SAMPLED_WEIGHTS)]:
        for patch in patches[name]:
            loss = _loss(stored[name], patch, strength)
            if loss is not None:
                lost, total, sampled = lost + loss[0] ** 2, total + loss[1] ** 2, sampled + 1
    ((storage, _),) = Counter(_said(packed) for packed in stored.values()).most_common(1)
    relative = (lost / total) ** 0.5 if total else None
    return Survival(component, storage, relative, sampled, len(beside), len(stored) - len(beside))


def _has_factors(patches: Sequence[Factored]) -> bool:
    found = [patch.factors() for patch in patches]
    return all(one is not None and one.down.dim() == one.up.dim() == 2 for one in found)


def _loss(packed: Packed, patch: Factored, strength: float) -> tuple[float, float] | None:
    """‖Q(W+Δ) − W − Δ‖ and ‖Δ‖ of a sample of rows; None where the rounding is not known."""
    factors = patch.factors()
    if factors is None:
        return None
    begin, end = patch.rows or (0, packed.shape[0])
    rows = torch.arange(begin, end, max(1, (end - begin) // SAMPLED_ROWS))[:SAMPLED_ROWS]
    delta = strength * (factors.up[rows - begin] @ factors.down)
    weight = packed.take(rows, torch.float32)
    after = packed.rounded(weight + delta)
    return None if after is None else (float((after - weight - delta).norm()), float(delta.norm()))


def _said(packed: Packed) -> str:
    """The format in ComfyUI's or GGUF's words."""
    return str(packed.settings.get("format", packed.stored.dtype)).removeprefix("torch.")
