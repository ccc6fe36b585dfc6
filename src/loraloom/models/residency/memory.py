"""From handles to networks that compute: what is in memory, in which type, and who makes room.

One module per base and type, whatever LoRAs are on it: a network that is asked for takes the module with
its own stack applied, at each call, so that two networks may share a base and be used in turns. What was
not used for longest leaves first, text encoders before the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Literal, Protocol, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor, nn

from loraloom.errors import OutOfMemory
from loraloom.models.attention import attention
from loraloom.models.autoencoder_network import AutoencoderNetwork
from loraloom.models.compiled import check_compiler, compile_blocks
from loraloom.models.computing import USUAL, Computing
from loraloom.models.diffusion_network import DiffusionNetwork, Joining
from loraloom.models.family import Blueprint
from loraloom.models.handles import KEEPS_REFERENCES, Autoencoder, DiffusionModel, TextEncoders, TextPart
from loraloom.models.picture_encoders import PictureEncoder, StyleModel
from loraloom.models.residency.acting import acting
from loraloom.models.residency.activations import hidden_width, step_bytes
from loraloom.models.residency.copies import Copies
from loraloom.models.residency.devices import DtypeName as DtypeName
from loraloom.models.residency.devices import device_named, dtype_named
from loraloom.models.residency.resident import Arithmetic, Resident, Storage
from loraloom.models.residency.storage import storage_of, weights_bytes
from loraloom.models.residency.unmerged import Unmerged
from loraloom.reading_ahead import read_ahead
from loraloom.sampling.inputs import Inputs
from loraloom.weights.capacity import available_memory, is_allocation_failure
from loraloom.weights.patch import Stack
from loraloom.weights.source import WeightSource

Kind: TypeAlias = Literal["network", "autoencoder", "text", "pictures"]

_KINDS: Mapping[Kind, str] = {
    "network": "network",
    "autoencoder": "autoencoder",
    "text": "text encoder",
    "pictures": "picture encoder",
}

LARGE_TEXT_ENCODER = 2_000_000_000
"""Parameters from which a text encoder follows the network's type instead of float32."""

MARGIN = 256 << 20
"""Bytes kept free when weights are loaded; what a step or a picture takes is made room for at the call."""

DOUBT = 2
"""How far off an estimate of what computing takes may be."""


class Joins(Protocol):
    """What evaluates networks of several runs together (`residency.together`)."""

    def place(self, model: DiffusionModel, beside: tuple[Stack, ...]) -> Joining:
        """A network's place in it."""
        ...

    def said(self) -> Mapping[str, str | int] | None:
        """How the caller's latest evaluations were done, for the result of its run."""
        ...


class Memory:
    """What is resident on one device.

    device: "auto", "cpu", "cuda", "cuda:1", "xpu", "mps". dtype: the type networks compute in; "auto" is
    bfloat16 where the device multiplies it natively, else float32. budget: bytes that may be used of the
    device in all (of the CPU: by weights); None: what it has. storage: how quantised weights are multiplied
    (`resident.Arithmetic`). computing: see there.
    """

    def __init__(
        self,
        device: str = "auto",
        dtype: DtypeName = "auto",
        budget: int | None = None,
        storage: Arithmetic = "native",
        computing: Computing = USUAL,
    ) -> None:
        self.device = device_named(device)
        self.dtype = dtype_named(dtype, self.device)
        self.budget = budget
        self.storage: Arithmetic = storage
        self.computing = computing
        self._attention = attention(computing.attention, self.device)
        if computing.compiled:
            check_compiler(self.device)
        self.tell: Callable[[str], None] = lambda message: None
        """Hears how runs are changed by what the device has."""
        self.joined: Joins | None = None
        """Evaluates networks of several runs together, while such runs go on."""
        self._residents: OrderedDict[Hashable, tuple[Kind, Resident]] = OrderedDict()
        self._asked = 0
        """Bytes that the latest evaluation was estimated to take."""
        self._too_much: dict[Hashable, int] = {}
        """Residents that were too large, and from which `_asked` on, whatever the device says is free."""
        self._copies: WeakSet[Copies] = WeakSet()
        """What runs beside weights, on the device."""

    def network(self, model: DiffusionModel, beside: tuple[Stack, ...] = ()) -> DiffusionNetwork:
        """The diffusion network with its LoRA stack, loaded and patched by the time of each call.

        beside: LoRAs that run beside the weights, which therefore need not be patched for them: one stack for
        all rows of a batch, or one for each of as many equal parts of it."""
        if self.joined is None or model.option(KEEPS_REFERENCES):
            return self.network_alone(model, beside)
        return replace(self.network_alone(model, beside), joining=self.joined.place(model, beside))

    @contextmanager
    def apart(self) -> Generator[None]:
        """Networks that are asked for in the context are evaluated by themselves."""
        joined, self.joined = self.joined, None
        try:
            yield
        finally:
            self.joined = joined

    def network_alone(
        self, model: DiffusionModel, beside: tuple[Stack, ...] = (), unmerged: Unmerged | None = None
    ) -> DiffusionNetwork:
        """The same, evaluated by itself even while others are evaluated together. unmerged: what `beside` is
        made into (`unmerged_of`), to be kept by the caller."""
        if any(beside) and unmerged is None:
            unmerged = self.unmerged_of(model, beside)
        blueprint = model.blueprint
        width, pixels = hidden_width(model.weights.shapes), model.family.latents.pixels
        key = _key("network", model.weights, self.dtype, self._narrow(storage_of(model, self.device)))

        def needed(x: Tensor, inputs: Inputs) -> int:
            return step_bytes(blueprint.config, width, pixels, x, inputs, self.dtype.itemsize)

        return DiffusionNetwork(
            family=model.family,
            module=self._network_lease(model),
            config=blueprint.config,
            parametrisation=model.current_parametrisation(),
            dtype=self.dtype,
            device=self.device,
            around=acting(model, unmerged, self._attention, self.computing),
            options=dict(model.options),
            reserve=lambda x, inputs: self._reserve(needed(x, inputs), x.shape[0], key, unmerged),
            has_room=lambda x, inputs, more: self.has_room(needed(x, inputs) + more, key, may_shrink=False),
            give_way=partial(self.give_way, key),
            recipe=model.family.recipe(model.weights.shapes),
            say=lambda message: self.tell(message),
            apart=cache(lambda: [self.network_alone(model, (stack,)) for stack in beside])
            if len(beside) > 1
            else None,
        )

    def unmerged_of(self, model: DiffusionModel, beside: tuple[Stack, ...]) -> Unmerged:
        """Stacks to run beside a model's weights."""
        return Unmerged(model.blueprint.placements, model.weights, beside, model.family.end_to_end)

    def autoencoder(self, vae: Autoencoder) -> AutoencoderNetwork:
        blueprint = vae.blueprint
        storage = self._narrow("quantized")
        lease = self._lease("autoencoder", blueprint, vae.weights, (), self.dtype, storage)
        key = _key("autoencoder", vae.weights, self.dtype, storage)
        return AutoencoderNetwork(
            vae.kind,
            lease,
            blueprint.config,
            self.dtype,
            self.device,
            has_room=partial(self.has_room, kept=key),
            give_way=partial(self.give_way, key),
            say_tiles=self._say_tiles,
        )

    def text(self, encoders: TextEncoders) -> Mapping[str, nn.Module]:
        """Role → text encoder with the stack applied. Valid until the next call of this object."""
        keys = {_key("text", part.weights, *self._text_storage(part)) for part in encoders.parts}
        return {part.role: self._text_part(part, encoders.stack, keys) for part in encoders.parts}

    def picture_module(self, model: PictureEncoder | StyleModel) -> nn.Module:
        """A picture encoder or style model, loaded. Valid until the next call of this object."""
        return self._lease("pictures", model.blueprint, model.weights, (), *self._text_storage(model))()

    def resident_module(self, model: DiffusionModel) -> nn.Module:
        """The diffusers module behind `network`, patched. Valid until the next call of this object."""
        return self._network_lease(model)()

    def release(self) -> None:
        """Let go of everything; networks that were handed out load again when next called."""
        for _, resident in self._residents.values():
            resident.close()
        for copies in self._copies:
            copies.put_away()
        self._residents.clear()
        self._too_much.clear()
        self._empty_cache()

    @property
    def resident_kinds(self) -> tuple[Kind, ...]:
        """What is in memory, the least used first."""
        return tuple(kind for kind, _ in self._residents.values())

    @property
    def resident_bytes(self) -> int:
        return sum(resident.nbytes for _, resident in self._residents.values())

    def _text_part(self, part: TextPart, stack: Stack, beside: Collection[Hashable]) -> nn.Module:
        dtype, storage = self._text_storage(part)
        return self._lease("text", part.blueprint, part.weights, stack, dtype, storage, beside)()

    def _text_storage(self, part: TextPart | PictureEncoder | StyleModel) -> tuple[torch.dtype, Storage]:
        count = sum(torch.Size(shape).numel() for shape in part.weights.shapes.values())
        return (
            (self.dtype, "stored")
            if count > LARGE_TEXT_ENCODER
            else (torch.float32, self._narrow("quantized"))
        )

    def _narrow(self, storage: Storage) -> Storage:
        """How weights are stored where users want them as narrow as their file has them."""
        return "stored" if self.computing.narrow_weights and storage == "quantized" else storage

    def _network_lease(self, model: DiffusionModel) -> Callable[[], nn.Module]:
        storage = self._narrow(storage_of(model, self.device))
        return self._lease("network", model.blueprint, model.weights, model.stack, self.dtype, storage)

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
        key = _key(kind, source, dtype, storage)

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
        room = self._free() - MARGIN
        while True:
            try:
                return load(room)
            except (RuntimeError, MemoryError) as error:
                if not is_allocation_failure(error) or room <= 0:
                    raise
            if not self._shrink_others(beside):
                room = min(room, size) // 2
                self._note_too_much(key)

    def _shrink_others(self, kept: Collection[Hashable]) -> bool:
        """Let something go beside what is being loaded; whether there was anything."""
        if self._evict(kept):
            return True
        return any(self._halve(self._residents[key][1]) for key in kept if key in self._residents)

    def _halve(self, resident: Resident) -> bool:
        """Let a resident hold half as much; whether it could."""
        streaming = resident.streaming
        if streaming is None or streaming.held <= streaming.least:
            return False
        is_smaller = resident.fit(max(streaming.least, resident.nbytes // 2))
        self._empty_cache()
        return is_smaller

    def _patch(
        self, resident: Resident, stack: Stack, key: Hashable, beside: Collection[Hashable] = ()
    ) -> None:
        """Apply a stack; with less beside it, or less of it, where the memory does not suffice."""
        coming = resident.coming(stack)
        coming += MARGIN if coming else 0
        while coming > self._free() and self._evict((key, *beside)):
            pass
        if coming > self._free() and self.device.type != "cpu":
            resident.fit(resident.nbytes + self._free() - coming)
        while True:
            try:
                resident.apply(stack, lambda: resident.nbytes + self._free() - MARGIN)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_allocation_failure(error):
                    raise
                if not self._evict((key, *beside)) and not self._halve(resident):
                    raise OutOfMemory(
                        f"there is not enough memory on {self.device} to apply the LoRAs"
                    ) from error
                self._note_too_much(key)

    def give_way(self, kept: Hashable = None) -> bool:
        """After an allocation failed: whether more is free now, because something left or became smaller."""
        if self.device.type == "cpu":
            return False
        if not self._evict((kept,)):
            if not any(self._halve(resident) for _, resident in self._residents.values()):
                return False
            self.tell(f"memory on {self.device} ran out; more weights are fetched each time they are used")
        self._note_too_much(kept)
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

    def _say_tiles(self, tile: int) -> None:
        self.tell(f"memory on {self.device} does not suffice for the whole picture: tiles of {tile} pixels")

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

    def has_room(self, needed: int, kept: Hashable = None, *, may_shrink: bool = True) -> bool:
        """Whether so many bytes are free to compute with; others than `kept` leave until they are with a
        margin, as far as there are others, and then `kept` holds less if it may."""
        self._asked = needed
        wanted = needed if self.device.type == "cpu" else needed + MARGIN
        while wanted > self._spare():
            if not self._evict((kept,)):
                if may_shrink:
                    self._shrink((wanted, needed), kept)
                return needed <= self._spare()
        self._grow(needed, kept)
        return True

    def _shrink(self, wanted: Iterable[int], kept: Hashable) -> None:
        """Make a resident so small that the first of these numbers of bytes is free for which it can be."""
        if self.device.type == "cpu" or kept not in self._residents:
            return
        kind, resident = self._residents[kept]
        is_whole = resident.is_whole
        any(resident.fit(resident.nbytes + self._spare() - size) for size in wanted)
        self._empty_cache()
        if is_whole:
            self._say_streamed(kind, resident.source, resident)

    def _grow(self, needed: int, kept: Hashable) -> None:
        """Let a resident hold what has become free: weights that were fetched, or wide copies."""
        if self.device.type == "cpu" or kept not in self._residents:
            return
        if needed >= self._too_much.get(kept, needed + 1):
            return
        resident = self._residents[kept][1]
        free = self._spare() - needed - MARGIN
        if resident.streaming is not None and resident.streaming.streamed:
            if free > resident.nbytes // 4:
                resident.fit(resident.nbytes + free)
        elif not self.computing.narrow_weights:
            resident.widen(free)

    def _reserve(self, needed: int, batch: int, kept: Hashable, unmerged: Unmerged | None = None) -> None:
        """Make room for one evaluation. torch.OutOfMemoryError where fewer latents at once would need less,
        or where so much is missing that the system would end the process: `needed` is an estimate."""
        if torch.is_grad_enabled():
            return
        needed += self._residents[kept][1].filling if kept in self._residents else 0
        if unmerged is not None and self.device.type != "cpu":
            copies = unmerged.copies
            if self._may_stay(copies, needed, kept):
                return
            needed += 2 * copies.largest * self.dtype.itemsize
        if self.has_room(needed, kept):
            return
        free = self._spare()
        if batch > 1 or needed > DOUBT * free:
            raise torch.OutOfMemoryError(f"about {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")

    def _may_stay(self, copies: Copies, needed: int, kept: Hashable) -> bool:
        """Make room for what runs beside a network's weights, too, so that it stays from step to step; where
        there is none, it is put away."""
        self._copies.add(copies)
        whole, coming = copies.elements * self.dtype.itemsize, -1
        while coming != (coming := whole - copies.held):  # others make room, and so may these
            is_refused = needed + coming >= self._too_much.get(kept, needed + coming + 1)
            copies.stay = not is_refused and self.has_room(needed + coming, kept)
            copies.stay = copies.stay and needed + coming + MARGIN <= self._spare()
        if not copies.stay:
            copies.put_away()
        return copies.stay

    def _free(self) -> int:
        free = available_memory(self.device)
        if self.budget is None:
            return free
        return min(free, self.budget - self.resident_bytes - sum(copies.held for copies in self._copies))

    def _spare(self) -> int:
        """Bytes to compute with."""
        return available_memory(self.device) if self.device.type == "cpu" else self._free()

    def _evict(self, kept: Collection[Hashable] = ()) -> bool:
        """Drop what all residents keep for speed alone, else the one that was not used for longest, text
        encoders first; whether there was anything.

        kept: those that stay, because they are about to be used."""
        had_spare = [resident.drop_spare() for _, resident in self._residents.values()]
        had_spare += [copies.put_away() for copies in self._copies]
        if any(had_spare):
            self._empty_cache()
            return True
        others = {key: kind for key, (kind, _) in self._residents.items() if key not in kept}
        keys = [key for key, kind in others.items() if kind == "text"] or list(others)
        if not keys:
            return False
        self._residents.pop(keys[0])[1].close()
        self._too_much.clear()
        self._empty_cache()
        return True

    def _empty_cache(self) -> None:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()


def _key(kind: Kind, source: WeightSource, dtype: torch.dtype, storage: Storage = "quantized") -> Hashable:
    """What a resident is found by."""
    return kind, source, dtype, storage
