"""How large a LoRA's change is beside the weights it changes: ‖ΔW‖ / ‖W‖, overall and by block.

‖ΔW‖ is exact, from the factors alone where the algebra allows. ‖W‖ of a large weight is estimated from
evenly spaced rows, which is a fraction of a percent off and spares reading the whole model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from loraloom.lora.receipt import BlockEffect, Effect
from loraloom.weights.packed import Packed
from loraloom.weights.patch import Rows

MAX_SAMPLED = 1 << 19
"""Elements of a weight from which its norm is estimated instead of summed."""

Read = Callable[[str], Tensor]

Quantised = Callable[[str], "Packed | None"]
"""Native weight → it as it is stored, where it is quantised."""

_BLOCK = re.compile(
    r"^(?P<block>(?:input_blocks|output_blocks|double_blocks|single_blocks|joint_blocks|transformer_blocks"
    r"|blocks|layers)\.\d+)|^(?P<encoder>clip_[lgh]|t5xxl)\..*?(?P<layer>(?:layers|block)\.\d+)"
)


class Measured(Protocol):
    """A patch that can say how large it is."""

    @property
    def rows(self) -> Rows: ...

    def norm(self, weight: Callable[[], Tensor]) -> float: ...


def block_of(weight: str) -> str:
    """The block that a native weight belongs to: "double_blocks.3", "clip_l layers.7", "middle_block"."""
    found = _BLOCK.match(weight)
    if found is None:
        return weight.split(".", 1)[0]
    return found["block"] or f"{found['encoder']} {found['layer']}"


def effect_of(
    component: str, patches: Mapping[str, Sequence[Measured]], read: Read, quantised: Quantised | None = None
) -> Effect:
    """The change at strength 1. read: native weight → its values, mapped where that is possible; quantised:
    those that are stored so, as they are stored."""
    blocks: dict[str, list[float]] = {}
    for weight, changes in patches.items():
        packed = None if quantised is None else quantised(weight)
        delta = sum(change.norm(_rows(partial(read, weight), change.rows)) ** 2 for change in changes)
        norm = _norm(read(weight)) if packed is None else _norm_of_packed(packed)
        sums = blocks.setdefault(block_of(weight), [0.0, 0.0, 0.0])
        for index, value in enumerate((delta, norm**2, 1.0)):
            sums[index] += value
    found = tuple(
        BlockEffect(block, int(count), math.sqrt(delta / base) if base else 0.0)
        for block, (delta, base, count) in blocks.items()
    )
    total = [sum(sums[index] for sums in blocks.values()) for index in (0, 1)]
    return Effect(component, math.sqrt(total[0]), math.sqrt(total[1]), found)


def _rows(read: Callable[[], Tensor], rows: Rows) -> Callable[[], Tensor]:
    """The rows of a weight in float32, made when they are asked for."""

    def weight() -> Tensor:
        stored = read()
        part = stored if rows is None else stored[rows[0] : rows[1]]
        return part.to(torch.float32, copy=True)

    return weight


def _norm(stored: Tensor) -> float:
    """Frobenius norm, of a large weight from evenly spaced rows."""
    if stored.dim() < 2 or stored.numel() <= MAX_SAMPLED:
        return float(torch.linalg.vector_norm(stored.to(torch.float32)))
    step = math.ceil(stored.numel() / MAX_SAMPLED)
    return _norm_of_sample(stored[::step].to(torch.float32), len(stored))


def _norm_of_packed(packed: Packed) -> float:
    """As `_norm`, with no more rows widened than are looked at."""
    step = math.ceil(math.prod(packed.shape) / MAX_SAMPLED)
    rows = torch.arange(0, packed.shape[0], step, device=packed.device)
    return _norm_of_sample(packed.take(rows, torch.float32), packed.shape[0])


def _norm_of_sample(sample: Tensor, rows: int) -> float:
    return float(torch.linalg.vector_norm(sample)) * math.sqrt(rows / len(sample))
