"""LoRAs that run beside a module's weights for the time of a call: y += strength · B(A x).

The weights stay as they are, so that LoRAs of single conditionings, at strengths that change from step to
step, cost no rebuilding, and so that the rows of one batch may carry different LoRAs. What has no factored
form runs beside them as a whole difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from loraloom.errors import InputError
from loraloom.models.family import Placement, Placements, Shapes
from loraloom.models.residency.copies import Copies
from loraloom.models.residency.row_products import RowFactors, Work, row_products
from loraloom.models.residency.whole_changes import BiasChange, WholeChange
from loraloom.weights.patch import Factors, Patch, Stack
from loraloom.weights.source import WeightSource


class UnclearRows(Exception):
    """A layer's input does not say which of it belongs to which row of the batch."""


Addition: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""(layer, its input) → what is added to its output."""


@dataclass(slots=True)
class _Layer:
    """What acts on one layer. whole: with the parts of the batch that each is for."""

    low: list[Addition]
    whole: list[tuple[Addition, list[int]]]


@dataclass(frozen=True, eq=False)
class Unmerged:
    """Stacks that run beside the weights of modules built from `placements`, filled from `source`.

    stacks: one for each of as many equal parts of a batch, in order. end_to_end: `Family.end_to_end`.
    work: what the products took, added up over all calls. unclear: why it cannot act on this module, once
        that was found.
    """

    placements: Placements
    source: WeightSource
    stacks: tuple[Stack, ...]
    end_to_end: tuple[str, ...] = ()
    work: Work = field(default_factory=Work)
    unclear: list[str] = field(default_factory=lambda: list[str]())
    _copies: Copies = field(default_factory=Copies)

    @contextmanager
    def on(self, module: nn.Module, rows: int) -> Generator[None]:
        """Act on batches of so many rows for the time of the context, in which the module raises UnclearRows
        where a layer with LoRAs is given something else than the rows of the batch."""
        if self.unclear:
            raise UnclearRows(self.unclear[0])
        handles = [
            module.get_submodule(path).register_forward_hook(partial(self._added, path, layer, rows))
            for path, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _added(
        self, path: str, found: _Layer, rows: int, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        x, parts = inputs[0], len(self.stacks)
        if parts > 1 and len(x) != rows and (len(x) % parts or not self._is_end_to_end(path)):
            self.unclear.append(f"{path} is given {len(x)} rows, the batch has {rows}")
            raise UnclearRows(self.unclear[0])
        for addition in found.low:
            output = output + addition(layer, x)
        if found.whole and parts == 1:
            for addition, _ in found.whole:
                output = output + addition(layer, x)
        elif found.whole:
            given, made = x.chunk(parts), [*output.chunk(parts)]
            for addition, own in found.whole:
                for part in own:
                    made[part] = made[part] + addition(layer, given[part])
            output = torch.cat(made)
        return output

    @property
    def copies(self) -> Copies:
        """What the products take of the device where the module is."""
        assert self._layers is not None  # made by then
        return self._copies

    def _is_end_to_end(self, path: str) -> bool:
        return any(part in path for part in self.end_to_end)

    @cached_property
    def _layers(self) -> dict[str, _Layer]:
        """Path of a layer → what acts on it."""
        fed: dict[str, list[tuple[str, Placement]]] = defaultdict(list)
        for name, placement in self.placements.items():
            fed[placement.native].append((name, placement))
        low: dict[str, dict[Hashable, RowFactors]] = defaultdict(dict)
        whole: dict[str, dict[Hashable, tuple[Addition, list[int]]]] = defaultdict(dict)
        for part, stack in enumerate(self.stacks):
            for native, patch, strength in _uses(stack):
                for name, placement in fed.get(native, ()):
                    path, _, attribute = name.rpartition(".")
                    if attribute not in ("weight", "bias"):
                        raise InputError(
                            f"A LoRA that changes {native!r}, which is no layer's, cannot belong to a single "
                            "conditioning."
                        )
                    factors = patch.factors() if attribute == "weight" else None
                    if factors is not None:
                        self._take(low[path], part, native, patch, factors, placement, strength)
                        continue
                    key = (attribute, patch.signature, strength)
                    if key not in whole[path]:
                        difference = _cut(self._difference(native, patch, strength), placement)
                        change = WholeChange if attribute == "weight" else BiasChange
                        whole[path][key] = change(self._copies.of(difference)), []
                    whole[path][key][1].append(part)
        return {
            path: _Layer(
                row_products([*low[path].values()], len(self.stacks), self.work, self._copies),
                [*whole[path].values()],
            )
            for path in dict.fromkeys((*low, *whole))
        }

    def _take(
        self,
        known: dict[Hashable, RowFactors],
        part: int,
        native: str,
        patch: Patch,
        factors: Factors,
        placement: Placement,
        strength: float,
    ) -> None:
        """Note that a part of the batch uses factors, which several may have in common."""
        key = (patch.signature, patch.rows)
        if key not in known:
            rows = self.source.shapes[native][0]
            first = 0 if patch.rows is None else patch.rows[0]
            up = factors.up.new_zeros(rows, *factors.up.shape[1:])
            up[first : first + len(factors.up)] = factors.up
            up = _cut(up, placement).flatten(1)
            if not bool(up.any()):
                return  # it changes other rows of a fused weight
            is_extra = not self.source.is_packed(native)
            known[key] = RowFactors(factors.down.flatten(1), up, [0.0] * len(self.stacks), is_extra)
        known[key].strengths[part] += strength

    def _difference(self, native: str, patch: Patch, strength: float) -> Tensor:
        """What a patch adds to a native weight."""
        whole = self.source.read(native, torch.float32)
        begin, end = patch.rows or (0, len(whole))
        before = whole[begin:end].clone()
        after = patch.apply(before.clone(), strength)
        if after.shape != before.shape:
            raise InputError(f"A LoRA that enlarges {native!r} cannot belong to a single conditioning.")
        difference = torch.zeros_like(whole)
        difference[begin:end] = after - before
        return difference


def _uses(stack: Stack) -> Generator[tuple[str, Patch, float]]:
    """(native weight, patch, strength) of everything in a stack."""
    for use in stack:
        for native, patches in use.source.patches().items() if use.strength else ():
            for patch in patches:
                yield native, patch, use.strength


def unfactored(stack: Stack, placements: Placements, shapes: Shapes) -> str | None:
    """The first native weight that a stack changes otherwise than by products of factors of its shape, which
    rows of a batch may have each for itself; None: there is none."""
    weights = {placed.native for name, placed in placements.items() if name.endswith(".weight")}
    known = {placed.native for placed in placements.values()}
    for native, patch, _ in _uses(stack):
        if native not in known:
            continue
        factors, columns = patch.factors(), torch.Size(shapes[native][1:]).numel()
        if native not in weights or factors is None or factors.down.flatten(1).shape[1] != columns:
            return native
    return None


def _cut(native: Tensor, placement: Placement) -> Tensor:
    return torch.cat([native[begin:end] for begin, end in placement.rows]) if placement.rows else native
