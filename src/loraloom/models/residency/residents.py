"""What is resident on a device, and who makes room for whom.

One module per base and type, whatever LoRAs are on it. What was not used for longest leaves first, text
encoders before the rest; before that, what is kept for speed alone.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Literal, Protocol, TypeAlias
from weakref import WeakSet

import torch
from torch import nn

from loraloom import heap
from loraloom.errors import OutOfMemory
from loraloom.models.compiled import compile_blocks
from loraloom.models.computing import Computing
from loraloom.models.family import Blueprint
from loraloom.models.residency.resident import Arithmetic, Resident, TooSmall
from loraloom.models.residency.storage import weights_bytes
from loraloom.models.residency.values import Storage
from loraloom.reading_ahead import read_ahead
from loraloom.weights.capacity import available_memory, give_back, is_allocation_failure
from loraloom.weights.patch import Stack
from loraloom.weights.source import WeightSource

Kind: TypeAlias = Literal["network", "autoencoder", "text", "pictures"]

_KINDS: Mapping[Kind, str] = {
    "network": "network",
    "autoencoder": "autoencoder",
    "text": "text encoder",
    "pictures": "picture encoder",
}

MARGIN = 256 << 20
"""Bytes kept free when weights are loaded; what a step or a picture takes is made room for at the call."""


class Guest(Protocol):
    """What is on the device and no resident, but leaves where one needs the room.

    held: bytes that are there now. put_away: let go of them; whether there was anything."""

    @property
    def held(self) -> int: ...
    def put_away(self) -> bool: ...


class Residents:
    """Modules in the memory of one device, and how much more of it may be used; see `memory.Memory`."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        budget: int | None,
        storage: Arithmetic,
        computing: Computing,
    ) -> None:
        heap.reuse()
        self.device, self.budget, self.computing = device, budget, computing
        self.dtype = dtype
        self.storage: Arithmetic = storage
        self.tell: Callable[[str], None] = lambda message: None
        """Hears how runs are changed by what the device has."""
        self._residents: OrderedDict[Hashable, tuple[Kind, Resident]] = OrderedDict()
        self._asked = 0
        """Bytes that the latest evaluation was estimated to take."""
        self._too_much: dict[Hashable, int] = {}
        """Residents that were too large, and from which `_asked` on, whatever the device says is free."""
        self._guests: WeakSet[Guest] = WeakSet()

    def release(self) -> None:
        """Let go of everything; networks that were handed out load again when next called."""
        for _, resident in self._residents.values():
            resident.close()
        for guest in self._guests:
            guest.put_away()
        self._residents.clear()
        self._too_much.clear()
        give_back(self.device)

    @property
    def resident_kinds(self) -> tuple[Kind, ...]:
        """What is in memory, the least used first."""
        return tuple(kind for kind, _ in self._residents.values())

    @property
    def resident_bytes(self) -> int:
        return sum(resident.nbytes for _, resident in self._residents.values())

    def _lease(
        self,
        kind: Kind,
        blueprint: Blueprint,
        source: WeightSource,
        stack: Stack,
        dtype: torch.dtype,
        storage: Storage = "quantized",
        beside: Collection[Hashable] = (),
    ) -> Callable[[], nn.Module]:
        """beside: keys of those that are in use together with it."""
        key = key_of(kind, source, dtype, storage)

        def load(room: int | None) -> Resident:
            made = Resident(
                blueprint,
                source,
                dtype=dtype,
                device=self.device,
                storage=storage,
                arithmetic=self.storage,
                room=room,
                spare=lambda: 0 if key in self._too_much else self._free() - MARGIN,
            )
            if kind == "network" and self.computing.compiled:
                compile_blocks(made.module)
            return made

        def module() -> nn.Module:
            if key != next(reversed(self._residents), None):  # the latest in use was another
                heap.give_back()  # blocks of other sizes than the next will need
            if key not in self._residents:
                self._make_room(kind, source, dtype, storage, beside)
                read_ahead(file.path for file in source.files)
                try:
                    resident = self._loaded(key, load, weights_bytes(source, dtype, storage), beside)
                except (RuntimeError, MemoryError) as error:
                    if not is_allocation_failure(error):
                        raise
                    raise self._too_large(kind, source, dtype, storage) from error
                self._residents[key] = kind, resident
                self._say_streamed(kind, source, resident)
            self._residents.move_to_end(key)
            resident = self._residents[key][1]
            is_whole = resident.is_whole
            self._patch(resident, stack, key, beside)
            if is_whole:
                self._say_streamed(kind, source, resident)
            return resident.module

        return module

    def _loaded(
        self,
        key: Hashable,
        load: Callable[[int | None], Resident],
        size: int,
        beside: Collection[Hashable],
    ) -> Resident:
        """A resident as large as there is room for; a smaller one where an allocation fails nevertheless.
        size: bytes of all its weights."""
        if self.device.type == "cpu":
            return load(None)
        limit, least = size, 0
        while True:
            free = self._free() - MARGIN
            try:
                return load(min(limit, free) if limit < size else free)
            except (RuntimeError, MemoryError) as error:
                if not is_allocation_failure(error):
                    raise
                is_known = isinstance(error, TooSmall)
                least = error.least if isinstance(error, TooSmall) else least
                is_last = free < max(least, 1) or limit == least
                if is_last and not self._shrink_others(beside):
                    raise
            if is_last:
                continue
            if is_known:
                limit = least
            elif not self._shrink_others(beside):
                limit = min(limit, free) // 2
                self._note_too_much(key)

    def _shrink_others(self, kept: Collection[Hashable]) -> bool:
        """Let something go beside what is being loaded; whether there was anything."""
        if self._evict(kept):
            return True
        return any(self._halve(self._residents[key][1]) for key in kept if key in self._residents)

    def _halve(self, resident: Resident) -> bool:
        """Let a resident hold half as much; whether it could."""
        if resident.nbytes <= resident.least:
            return False
        is_smaller = self._fit(resident, max(resident.least, resident.nbytes // 2))
        give_back(self.device)
        return is_smaller

    def _fit(self, resident: Resident, room: int) -> bool:
        """Let a resident hold at most so many bytes; False where they are too few. What there is no memory
        for after all is fetched when it is used."""
        try:
            return resident.fit(room)
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise
            return True

    def _patch(
        self, resident: Resident, stack: Stack, key: Hashable, beside: Collection[Hashable] = ()
    ) -> None:
        """Apply a stack; with less beside it, or less of it, where the memory does not suffice."""
        coming = resident.coming(stack)
        coming += MARGIN if coming else 0
        while coming > self._free() and self._evict((key, *beside)):
            pass
        if coming > self._free() and self.device.type != "cpu":
            self._fit(resident, resident.nbytes + self._free() - coming)
        while True:
            try:
                resident.apply(stack, lambda: resident.nbytes + self._free() - MARGIN)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_allocation_failure(error):
                    raise
                if not self._evict((key, *beside)) and not self._halve(resident):
                    raise OutOfMemory(
                        f"there is not enough memory on {self.device} to apply the LoRAs: the weights have"
                        f" {resident.nbytes / 1e9:.2f} GB, {max(self._free(), 0) / 1e9:.2f} GB are free"
                    ) from error
                self._note_too_much(key)

    def give_way(self, *kept: Hashable) -> bool:
        """After an allocation failed: whether more is free now, because something left or became smaller.
        kept: what does not leave as a whole."""
        if self.device.type == "cpu":
            return False
        gc.collect()  # an earlier run that failed may have left something, as errors and frames do
        if not self._evict(kept):
            if not any(self._halve(resident) for _, resident in self._residents.values()):
                return False
            self.tell(f"memory on {self.device} ran out; more weights are fetched each time they are used")
        for key in kept:
            self._note_too_much(key)
        return True

    def _note_too_much(self, key: Hashable) -> None:
        """An allocation failed while a resident was as large as it is: it does not grow again, and keeps no
        copies, until something else leaves or an evaluation needs less."""
        self._too_much[key] = min(self._asked, self._too_much.get(key, self._asked))

    def _say_streamed(self, kind: Kind, source: WeightSource, resident: Resident) -> None:
        if resident.streaming is not None and resident.streaming.streamed:
            names = ", ".join(file.path.name for file in source.files)
            self.tell(
                f"{names}: {resident.streaming.streamed / 1e9:.2f} of {resident.streaming.whole / 1e9:.2f} GB"
                f" of the {_KINDS[kind]} do not stay on {self.device} and are fetched when they are used"
            )

    def _make_room(
        self,
        kind: Kind,
        source: WeightSource,
        dtype: torch.dtype,
        storage: Storage,
        beside: Collection[Hashable] = (),
    ) -> None:
        """Evict until the weights fit, or nothing is left to evict: then, on the CPU, OutOfMemory with the
        figures; on other devices they come when they are used."""
        needed = weights_bytes(source, dtype, storage) + MARGIN
        while needed > self._free():
            if not self._evict(beside):
                if self.device.type == "cpu":
                    raise self._too_large(kind, source, dtype, storage)
                return

    def _too_large(
        self, kind: Kind, source: WeightSource, dtype: torch.dtype, storage: Storage
    ) -> OutOfMemory:
        names = ", ".join(file.path.name for file in source.files)
        needed = weights_bytes(source, dtype, storage) + MARGIN
        free = max(self._free(), 0)
        had = "said to be free, but not to be had," if needed <= free else "available"
        return OutOfMemory(
            f"{names}: the {_KINDS[kind]} needs {needed / 1e9:.2f} GB as"
            f" {str(dtype).removeprefix('torch.')}; {free / 1e9:.2f} GB are {had} on"
            f" {self.device}. Close other programs, or use a"
            " smaller type (--dtype bf16) or an 8-bit file"
        )

    def admit(self, guest: Guest) -> None:
        """What it holds counts from now on, for as long as somebody has it."""
        self._guests.add(guest)

    def _free(self) -> int:
        free = available_memory(self.device)
        if self.budget is None:
            return free
        return min(free, self.budget - self.resident_bytes - sum(guest.held for guest in self._guests))

    def _spare(self) -> int:
        """Bytes to compute with."""
        return available_memory(self.device) if self.device.type == "cpu" else self._free()

    def _evict(self, kept: Collection[Hashable] = ()) -> bool:
        """Drop what all residents keep for speed alone, else the one that was not used for longest, text
        encoders first; whether there was anything.

        kept: those that stay, because they are about to be used."""
        had_spare = [resident.drop_spare() for _, resident in self._residents.values()]
        had_spare += [guest.put_away() for guest in self._guests]
        if any(had_spare):
            give_back(self.device)
            return True
        others = {key: kind for key, (kind, _) in self._residents.items() if key not in kept}
        keys = [key for key, kind in others.items() if kind == "text"] or list(others)
        if not keys:
            return False
        self._residents.pop(keys[0])[1].close()
        self._too_much.clear()
        give_back(self.device)
        return True


def key_of(kind: Kind, source: WeightSource, dtype: torch.dtype, storage: Storage = "quantized") -> Hashable:
    """What a resident is found by."""
    return kind, source, dtype, storage
