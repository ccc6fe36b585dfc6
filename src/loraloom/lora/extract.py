"""A LoRA from the difference of two checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.component import Component, ComponentName, owner_of
from loraloom.lora.low_rank import check_size, reduce_matrix
from loraloom.lora.receipt import shorten
from loraloom.lora.writing import (
    PRECISIONS,
    Speller,
    difference_tensors,
    factor_tensors,
    refuse_not_finite,
    write_lora,
)
from loraloom.models.recognition import family_named
from loraloom.weights.patch import Target

LEAST = 1e-6
"""‖ΔW‖ / ‖W‖ below which a weight counts as unchanged: conversions between file types move weights more."""


@dataclass(frozen=True, slots=True)
class CheckpointWeights:
    """A checkpoint's components and how to read their weights (component, native name → tensor)."""

    components: Mapping[ComponentName, Component]
    read: Callable[[ComponentName, str], Tensor]


def extract(
    tuned: CheckpointWeights,
    original: CheckpointWeights,
    out: Path,
    *,
    rank: int = 64,
    energy: float | None = None,
    precision: str = "fp16",
) -> str:
    """Write the best LoRA of at most `rank` ranks for tuned − original. Returns the energy kept, in a line.

    Matrices and kernels become low-rank pairs; biases, norms and what has no rank to lose are kept whole.
    """
    check_size(rank, energy)
    _check_same(tuned, original)
    speller = Speller(original.components, "kohya")
    dtype = PRECISIONS[precision]
    written: dict[str, Tensor] = {}
    kept = total = 0.0
    changed = 0
    for component, part in original.components.items():
        for weight in part.shapes:
            before = original.read(component, weight).to(torch.float32)
            delta = tuned.read(component, weight).to(torch.float32) - before
            refuse_not_finite(f"the difference of {weight}", [delta])
            if float(delta.norm()) <= LEAST * float(before.norm()):
                continue
            on_bias = weight.endswith(".bias")
            name = speller.name(component, Target(owner_of(weight)))
            if name is None:
                continue
            changed += 1
            if delta.dim() < 2 or on_bias:
                written |= difference_tensors(name, delta, dtype, on_bias=on_bias)
                continue
            form = reduce_matrix(delta.flatten(1), rank, energy)
            kept, total = kept + form.kept, total + form.total
            written |= factor_tensors(name, form.factors, tuple(delta.shape), dtype)
    if not changed:
        raise InputError("the two checkpoints have the same weights: there is nothing to extract")
    family = next(iter(original.components.values())).family
    known = family_named(family)
    said = "" if known is None else known.lora.base_version
    base = {"ss_base_model_version": said} if said else {}
    write_lora(out, written, {**base, "ss_network_dim": str(rank), "ss_network_module": "networks.lora"})
    report = f"{changed} weights differ, {kept / total if total else 1:.4%} of their ‖ΔW‖² kept"
    return report + _left_out(tuned, original)


def _left_out(tuned: CheckpointWeights, original: CheckpointWeights) -> str:
    """What the tuned checkpoint alone has, which no LoRA for the original can hold."""
    new = [
        weight
        for component, part in original.components.items()
        for weight in tuned.components[component].shapes
        if weight not in part.shapes
    ]
    return f"; left out is what only the tuned checkpoint has ({shorten(new, 3)})" if new else ""


def _check_same(tuned: CheckpointWeights, original: CheckpointWeights) -> None:
    for component, part in original.components.items():
        other = tuned.components.get(component)
        if other is None or other.family != part.family:
            found = "nothing" if other is None else other.family
            raise InputError(f"the checkpoints differ in kind: {component} is {part.family} and {found}")
        for weight, shape in part.shapes.items():
            if other.shapes.get(weight) != shape:
                found = list(other.shapes[weight]) if weight in other.shapes else "missing"
                raise InputError(
                    f"{weight} is {list(shape)} in the original and {found} in the tuned checkpoint: they"
                    " must be of one model. Take the checkpoint that it was tuned from"
                )
