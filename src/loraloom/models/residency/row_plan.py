"""How runs that share a base model and differ in LoRAs are evaluated: in one batch, or one after another.

In one batch the LoRAs run beside the weights, each for its rows, which costs products in every step. One
after another they are merged into the weights, which costs a pass over the weights for every stack of LoRAs,
and as many more evaluations. `Speeds` turns both into seconds; `benchmarks/variants.py` measures them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from loraloom.models.family import Placements, Shapes
from loraloom.models.residency.row_products import Work
from loraloom.models.residency.unmerged import unfactored
from loraloom.weights.patch import Stack
from loraloom.weights.source import WeightSource


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds for: a floating-point operation of the products beside the weights; a byte read or written when
    weights are rebuilt; a layer's call, whatever it computes."""

    flop: float
    byte: float
    layer: float


SPEEDS: Mapping[str, Speeds] = {"cpu": Speeds(flop=6e-11, byte=1.2e-9, layer=6.5e-5)}
"""By kind of device, as measured on the demo's model by one thread; what counts is how they compare."""

ELSEWHERE = Speeds(flop=5e-14, byte=2e-12, layer=2e-5)
"""For devices that were not at hand; from what their makers say of them."""


@dataclass(frozen=True, eq=False, slots=True)
class Way:
    """How one run is evaluated. merged: its LoRAs in the weights. beside: those that run beside them.

    why: in words, for whoever asks. is_open: whether what it costs is still to be weighed."""

    merged: Stack
    beside: Stack
    why: str
    is_open: bool = False


def signed(stack: Stack) -> tuple[object, ...]:
    """What tells stacks apart."""
    return tuple(use.signature for use in stack)


def planned(stacks: Sequence[Stack], placements: Placements, shapes: Shapes) -> list[Way]:
    """The ways of runs with these stacks, as far as the LoRAs alone decide."""
    if len({signed(stack) for stack in stacks}) < 2:
        return [Way(stack, (), "all rows have the same LoRAs") for stack in stacks]
    plain = _common(stacks)
    whole = [unfactored(stack[len(plain) :], placements, shapes) for stack in stacks]
    factored = [stack for stack, native in zip(stacks, whole, strict=True) if native is None]
    if len({signed(stack) for stack in factored}) < 2:
        return [Way(stack, (), _said_whole(native)) for stack, native in zip(stacks, whole, strict=True)]
    plain = _common(factored)
    return [
        Way(plain, stack[len(plain) :], "LoRAs beside the weights, each for its rows", is_open=True)
        if native is None
        else Way(stack, (), _said_whole(native))
        for stack, native in zip(stacks, whole, strict=True)
    ]


def _said_whole(native: str | None) -> str:
    if native is None:
        return "merged into the weights: no other row's LoRAs could run beside them in the same batch"
    return f"merged into the weights: the change of {native} has no factors to run beside them"


def _common(stacks: Sequence[Stack]) -> Stack:
    """What all stacks begin with."""
    first, length = stacks[0], min(map(len, stacks))
    for place in range(length):
        if len({signed(stack[place : place + 1]) for stack in stacks}) > 1:
            return first[:place]
    return first[:length]


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of what each way takes more than the other."""

    beside: float
    merged: float

    @property
    def in_words(self) -> str:
        return f"about {self.merged:.2g} s to merge them one after another; {self.beside:.2g} s beside them"


def costs(
    work: Work, steps: int, stacks: Iterable[Stack], rows_at_once: int, layers: int,
    source: WeightSource, dtype: torch.dtype, speeds: Speeds,
) -> Costs:  # fmt: skip
    """What is left to do for runs with these stacks.

    work: of one evaluation with `rows_at_once` of them. steps: evaluations to come. layers: of the module."""
    stacks = [*stacks]
    by_stack: dict[tuple[object, ...], list[Stack]] = {}
    for stack in stacks:
        by_stack.setdefault(signed(stack), []).append(stack)
    together = _times(len(stacks), rows_at_once)
    apart = sum(_times(len(of), rows_at_once) for of in by_stack.values())
    share = len(stacks) / rows_at_once
    beside = steps * (share * work.flops * speeds.flop + together * work.layers * speeds.layer)
    rebuilt = sum(rebuilt_bytes(of[0], source, dtype) for of in by_stack.values())
    return Costs(beside, rebuilt * speeds.byte + (apart - together) * steps * layers * speeds.layer)


def _times(rows: int, at_once: int) -> int:
    return -(-rows // at_once)


def rebuilt_bytes(stack: Stack, source: WeightSource, dtype: torch.dtype) -> int:
    """Bytes read and written to merge a stack; weights that stay quantised are not rebuilt."""
    natives = {native for use in stack for native in use.source.patches() if native in source.shapes}
    return sum(
        torch.Size(source.shapes[native]).numel() * (source.dtypes[native].itemsize + dtype.itemsize)
        for native in natives
        if not source.is_packed(native)
    )
