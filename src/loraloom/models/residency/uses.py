"""Changes of one weight: what identifies them, and how they come onto it."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.models.residency.device_weights import LowRankPatch
from loraloom.weights.patch import Factors, Patch

Signature: TypeAlias = "tuple[tuple[Hashable, float], ...]"
"""What is applied to one native weight: (content of the patch, strength), in order."""

Uses: TypeAlias = "list[tuple[Patch, float]]"


def is_factored(uses: Uses) -> bool:
    """Whether all changes of a weight are products of two matrices."""
    found = [patch.factors() for patch, _ in uses]
    return all(factors and factors.down.dim() == factors.up.dim() == 2 for factors in found)


def factors_of(uses: Uses) -> list[tuple[Tensor, Tensor, int]] | None:
    """All changes of a weight as (down, up · strength, first row); None where one has no such form."""
    found: list[tuple[Tensor, Tensor, int]] = []
    for patch, strength in uses:
        factors = patch.factors()
        if factors is None or factors.down.dim() != 2 or factors.up.dim() != 2:
            return None
        first = 0 if patch.rows is None else patch.rows[0]
        found.append((factors.down.float(), factors.up.float() * strength, first))
    return found


def patched(whole: Tensor, patch: Patch, strength: float) -> Tensor:
    """A native weight with one patch more."""
    if patch.rows is None:
        return patch.apply(whole, strength)
    begin, end = patch.rows
    before = whole[begin:end]
    after = patch.apply(before, strength)
    if after.shape != before.shape:
        raise ModelFileError("a LoRA that enlarges a weight cannot be applied to a part of its rows")
    if after.data_ptr() != before.data_ptr():
        before.copy_(after)
    return whole


def joined(uses: Uses) -> Uses:
    """The same changes, runs of low-rank patches on the same rows put side by side."""
    made: Uses = []
    for rows, group in itertools.groupby(uses, key=lambda use: use[0].rows):
        run = list(group)
        found = [patch.factors() for patch, _ in run] if len(run) > 1 else [None]
        if None in found:
            made += run
            continue
        factors = [factor for factor in found if factor is not None]
        up = torch.cat([f.up * strength for f, (_, strength) in zip(factors, run, strict=True)], 1)
        down = torch.cat([f.down for f in factors])
        made.append((LowRankPatch(signature_of(run), rows, Factors(down, up)), 1.0))
    return made


def signature_of(uses: Iterable[tuple[Patch, float]]) -> Signature:
    return tuple((patch.signature, strength) for patch, strength in uses)
