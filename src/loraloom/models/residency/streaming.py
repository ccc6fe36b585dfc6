"""Weights that take turns in a device's memory, for modules that are larger than it.

A unit is the smallest set of layers that are filled together. As many as fit stay; the others pass through a
window, filled when the first of their layers is about to run, the next one ahead (on a stream of its own
where the device has them), and leave in the order of their last use. Which comes next is what came next the
last time.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from loraloom.models.residency.slots import Slots

SMALL = 0.02
"""Share of all weights that the smallest units make up, which stay whatever happens."""


@dataclass(frozen=True, eq=False, slots=True)
class Unit:
    """Native weights that are filled together, the layers that they fill, and their bytes on the device."""

    natives: tuple[str, ...]
    layers: tuple[nn.Module, ...]
    size: int


Pair: TypeAlias = "tuple[Unit | None, Unit | None]"


def find_units(slots: Slots, size_of: Callable[[str], int]) -> tuple[list[Unit], int]:
    """The units of a module in the order of its layers, and the bytes of all weights that have to stay: those
    of modules with children, which no call of a layer announces, and tables, of which rows are read."""
    group: dict[nn.Module, nn.Module] = {}

    def root(layer: nn.Module) -> nn.Module:
        while group.setdefault(layer, layer) is not layer:
            layer = group[layer]
        return layer

    fixed: set[nn.Module] = set()
    for fed in slots.values():
        owners = [slot.owner for slot in fed]
        for owner in owners:
            group[root(owner)] = root(owners[0])
        fixed |= {owner for owner in owners if any(owner.children()) or isinstance(owner, nn.Embedding)}
    still = {root(owner) for owner in fixed}
    members: dict[nn.Module, tuple[list[str], dict[nn.Module, None]]] = defaultdict(lambda: ([], {}))
    staying = 0
    for native, fed in slots.items():
        first = root(fed[0].owner)
        if first in still:
            staying += size_of(native)
            continue
        natives, layers = members[first]
        natives.append(native)
        layers.update(dict.fromkeys(slot.owner for slot in fed))
    units = [
        Unit(tuple(natives), tuple(layers), sum(map(size_of, natives)))
        for natives, layers in members.values()
    ]
    return units, staying


@dataclass(frozen=True, slots=True)
class Plan:
    """Which units stay, and the bytes that the others share."""

    staying: frozenset[Unit]
    window: int


def plan(units: Sequence[Unit], room: int) -> Plan | None:
    """What fits in so many bytes, spread evenly over the module; None where not even one unit after the other
    does."""
    total = sum(unit.size for unit in units)
    if total <= room:
        return Plan(frozenset(units), 0)
    largest = max(unit.size for unit in units)
    ahead = next((ahead for ahead in (2, 1) if ahead * largest <= room), 0)
    if not ahead:
        return None
    left = room - ahead * largest
    staying = _smallest(units, min(left, int(SMALL * total)))
    used = sum(unit.size for unit in staying)
    share, due = left / total, 0.0
    for careful in (True, False):
        for unit in units:
            due += unit.size * share
            wanted = due - used >= unit.size / 2 or not careful
            if unit not in staying and wanted and used + unit.size <= left:
                staying.add(unit)
                used += unit.size
    return Plan(frozenset(staying), room - used)


def _smallest(units: Sequence[Unit], size: int) -> set[Unit]:
    chosen: set[Unit] = set()
    for unit in sorted(units, key=lambda unit: unit.size):
        size -= unit.size
        if size < 0:
            break
        chosen.add(unit)
    return chosen


class Weights(Protocol):
    """What fills native weights on the device."""

    def fill(self, natives: Iterable[str]) -> None: ...
    def empty(self, natives: Iterable[str]) -> None: ...
    def pin(self, natives: Iterable[str]) -> None: ...
    def unpin(self) -> None: ...


class Streaming:
    """Keeps the units of a module within a number of bytes."""

    def __init__(
        self,
        units: Sequence[Unit],
        fixed: int,
        weights: Weights,
        device: torch.device,
    ) -> None:
        self._units, self.fixed = units, fixed
        self._weights = weights
        self._side = _Side(device)
        self._plan = Plan(frozenset(), 0)
        self._inside: OrderedDict[Unit, None] = OrderedDict()  # streamed ones, by last use
        self._stay: set[Unit] = set()
        self._hooks: list[RemovableHandle] = []
        self._after: dict[Pair, Unit] = {}
        self._last: Pair = (None, None)

    @property
    def least(self) -> int:
        """Bytes without which nothing goes."""
        return self.fixed + max((unit.size for unit in self._units), default=0)

    @property
    def whole(self) -> int:
        return self.fixed + sum(unit.size for unit in self._units)

    @property
    def moving(self) -> list[Unit]:
        """The units that do not stay."""
        return [unit for unit in self._units if unit not in self._plan.staying]

    @property
    def streamed(self) -> int:
        """Bytes that cross to the device in each evaluation."""
        return sum(unit.size for unit in self.moving)

    @property
    def held(self) -> int:
        """Bytes that it may hold."""
        return self.fixed + sum(unit.size for unit in self._plan.staying) + self._plan.window

    def fit(self, room: int) -> bool:
        """Hold at most so many bytes from now on; False where they are too few."""
        found = plan(self._units, room - self.fixed)
        if found is None:
            return False
        if found == self._plan and self._stay == set(found.staying):
            return True
        self._side.wait()
        self._plan = found
        for unit in [*self._stay - found.staying]:
            self._stay.discard(unit)
            self._weights.empty(unit.natives)
        for unit in [*self._inside]:
            if unit in found.staying:
                del self._inside[unit]
                self._stay.add(unit)
        self._make_room(0)
        try:
            for unit in self._units:
                if unit in found.staying and unit not in self._stay:
                    self._fill_whole(unit)
                    self._stay.add(unit)
        finally:  # what is not there is fetched when its turn comes
            self._plan = Plan(frozenset(self._stay), found.window)
            self._set_hooks()
        return True

    def vacate(self) -> None:
        """Hold nothing that may leave."""
        self._side.wait()
        self._plan = Plan(frozenset(), 0)
        for unit in (*self._stay, *self._inside):
            self._weights.empty(unit.natives)
        self._stay.clear()
        self._inside.clear()

    def settle(self) -> None:
        """Until nothing is on its way: what units are filled from may change now."""
        self._side.wait()

    def close(self) -> None:
        """Fetch nothing any more."""
        self._side.wait()
        for hook in self._hooks:
            hook.remove()

    def _set_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        streamed = self.moving
        self._hooks = [
            layer.register_forward_pre_hook(partial(self._enter, unit), prepend=True)  # pyright: ignore[reportArgumentType]
            for unit in streamed
            for layer in unit.layers
        ]
        for unit in streamed:
            self._weights.pin(unit.natives)
        if not streamed:
            self._weights.unpin()
        self._after.clear()
        self._last = (None, None)

    def _enter(self, unit: Unit, *_: Any) -> None:
        """Before a layer runs."""
        if unit is self._last[1] and unit in self._inside:
            return
        if unit not in self._inside:
            self._make_room(unit.size)
            self._fill_whole(unit)
            self._inside[unit] = None
        self._side.hand_over(unit)
        self._inside.move_to_end(unit)
        self._after[self._last] = unit
        self._last = (self._last[1], unit)
        following = self._after.get(self._last)
        if following is not None and following not in self._inside:
            self._fetch(following, unit)

    def _fetch(self, unit: Unit, running: Unit) -> None:
        """Fill a unit ahead, where there is room beside the one that runs."""
        if not self._make_room(unit.size, running):
            return
        with self._side.ahead(unit):
            self._fill_whole(unit)
        self._inside[unit] = None

    def _fill_whole(self, unit: Unit) -> None:
        """All of a unit or nothing."""
        try:
            self._weights.fill(unit.natives)
        except BaseException:
            self._weights.empty(unit.natives)
            raise

    def _make_room(self, size: int, running: Unit | None = None) -> bool:
        """Let units go until so many bytes of the window are free; whether they are."""
        used = sum(unit.size for unit in self._inside)
        for unit in [*self._inside]:
            if used + size <= self._plan.window:
                break
            if unit is not running:
                del self._inside[unit]
                self._side.hand_over(unit)  # it may still be on its way
                self._weights.empty(unit.natives)
                used -= unit.size
        return used + size <= self._plan.window


class _Side:
    """A stream beside the one that computes, on devices that have them."""

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device) if device.type in ("cuda", "xpu") else None
        self._device = device
        self._stream: Any = self._module.Stream(device) if self._module else None
        self._ready: dict[Unit, Any] = {}

    def ahead(self, unit: Unit) -> AbstractContextManager[Any]:
        """What runs inside runs beside the layer that is about to start."""
        if not self._module:
            return nullcontext()
        self._stream.wait_stream(self._module.current_stream(self._device))
        return _Recorded(self._module.stream(self._stream), self._note, unit)

    def hand_over(self, unit: Unit) -> None:
        """Let computing wait until a unit is there."""
        event = self._ready.pop(unit, None)
        if event is None:
            return
        now = self._module.current_stream(self._device)
        now.wait_event(event)
        for layer in unit.layers:
            for tensor in _tensors_of(layer):
                tensor.record_stream(now)

    def wait(self) -> None:
        """Until nothing is on its way."""
        if self._stream is not None:
            self._stream.synchronize()
        self._ready.clear()

    def _note(self, unit: Unit) -> None:
        self._ready[unit] = self._stream.record_event()


@dataclass
class _Recorded:
    """A stream's context at whose end the work is marked."""

    inner: Any
    note: Callable[[Unit], None]
    unit: Unit

    def __enter__(self) -> None:
        self.inner.__enter__()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.note(self.unit)
        self.inner.__exit__(*error)


def _tensors_of(layer: nn.Module) -> Iterable[torch.Tensor]:
    """A layer's own tensors, those of a quantised weight among them."""
    yield from layer.parameters(recurse=False)
    yield from layer.buffers(recurse=False)
    packed, merged, beside = (getattr(layer, name, None) for name in ("packed", "merged", "low_rank"))
    if packed is not None:
        yield from packed.parts.values()
    if merged is not None:
        yield merged
    if beside is not None:
        yield from beside
