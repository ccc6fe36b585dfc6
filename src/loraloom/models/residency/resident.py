"""A module in memory, filled from a weight source and kept in step with a LoRA stack.

There is one copy of every weight. Which LoRAs a native weight carries is its signature; when the wanted
signature differs, that weight alone is rebuilt: read again from the file, patched in float32, rounded once.
An empty signature therefore is the base, bit for bit. Weights that stay quantised are not touched where the
algebra allows: their LoRAs run beside them. Where it does not, the one weight is widened and carries the
change in the type to compute in; nothing is rounded into the storage format again.

On other devices than the CPU all of this happens there (`device_weights`), and a module may be larger than
what its weights may take: then some of them come when they are used (`streaming`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, from_shapes
from loraloom.models.residency.device_weights import DeviceWeights
from loraloom.models.residency.slots import find_slots, is_unused, keep_packed
from loraloom.models.residency.streaming import Streaming, find_units
from loraloom.models.residency.uses import (
    Signature,
    Uses,
    factors_of,
    is_factored,
    joined,
    patched,
    signature_of,
)
from loraloom.weights.layers import PackedLayer, PackedLinear, join_low_rank
from loraloom.weights.meta import build_unfilled, complete
from loraloom.weights.packed import narrowed
from loraloom.weights.patch import Stack
from loraloom.weights.picture_layers import with_less_work
from loraloom.weights.source import WeightSource

Storage: TypeAlias = 'Literal["quantized", "stored", "multiplied"] | torch.dtype'

Arithmetic: TypeAlias = Literal["native", "widened"]
"""How quantised weights are multiplied: as ComfyUI does for their format (for integers it rounds the inputs
too), or with their values in the type to compute in."""


def narrow_type(storage: Storage) -> torch.dtype | None:
    """The 8-bit type that weights are rounded to."""
    if isinstance(storage, torch.dtype):
        return storage
    return torch.float8_e4m3fn if storage == "multiplied" else None


_UNKNOWN: Signature = (("being rebuilt", 0.0),)


class Resident:
    """A module with its weights in memory.

    dtype: the type to compute in. Weights stored in it are mapped from the file without a copy where the
        device allows it; others are converted tensor by tensor.
    storage: which weights of linear layers, embeddings and convolutions stay narrower and are widened when
        used: "quantized", those that the file has quantised; "stored", all as the file has them; an 8-bit
        type to round the others to; or "multiplied", which rounds to E4M3 and multiplies that with inputs
        that are rounded, too, on devices that can.
    room: bytes that the weights may take on the device; None: all that they need. spare: bytes more that may
        be kept there now. torch.OutOfMemoryError where not even one layer after the other fits.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        source: WeightSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
        storage: Storage = "quantized",
        arithmetic: Arithmetic = "native",
        room: int | None = None,
        spare: Callable[[], int] = lambda: 0,
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.device = device
        self.storage: Storage = storage
        self._exact = frozenset(
            placement.native
            for name, placement in blueprint.placements.items()
            if not set(blueprint.exact).isdisjoint(name.split("."))
        )
        with source.naming():
            self.module = self._empty_module(blueprint)
            self._slots = keep_packed(
                self.module,
                find_slots(self.module, blueprint, source),
                self._stays_packed,
                dtype,
                native=arithmetic == "native",
            )
        self._packed = [layer for layer in self.module.modules() if isinstance(layer, PackedLayer)]
        self._applied: dict[str, Signature] = {}
        self._mapped: set[str] = set()  # native weights that are the file's own pages: not to be written to
        self._stack: Stack | None = ()
        self._uses: dict[str, Uses] = {}
        self._kept = DeviceWeights(source, device, spare)
        self._absent: set[str] = set()  # native weights whose slots are empty
        self._sizes: dict[str, int] = {}  # of each weight on the device, when what stays was planned
        self.streaming: Streaming | None = None
        try:
            self._load(room)
        except BaseException:
            self.close()  # else what was filled stays until the next attempt has failed, too
            raise
        with source.naming():
            complete(self.module, device, self._absent_tensors())

    def _absent_tensors(self) -> list[Tensor]:
        slots = (slot for native in self._absent for slot in self._slots[native])
        return [slot.tensor for slot in slots if not slot.layer]

    def _load(self, room: int | None) -> None:
        if room is None or self.device.type == "cpu":
            with _plain_tensors():
                for native in self._slots:
                    self._restore(native)
            return
        self._absent = set(self._slots)
        self._arrange(room)

    def _arrange(self, room: int) -> None:
        """Plan which weights stay, by the bytes that each takes with the present stack, and fill them: none
        that may leave is there."""
        if self.streaming is not None:
            self.streaming.close()
        units, fixed = find_units(self._slots, self.size_of)
        self.streaming = Streaming(units, fixed, self, self.device)
        if room - self._beside < self.streaming.least:
            raise torch.OutOfMemoryError(f"{self.streaming.least / 1e9:.2f} GB are the least")
        self._sizes = self._sizes_now()
        self.fill(self._absent - {native for unit in units for native in unit.natives})
        self.fit(room)

    def fit(self, room: int) -> bool:
        """Hold at most so many bytes of weights from now on; False where they are too few for it."""
        if self.streaming is None:
            return self.nbytes <= room
        if self._beside + self.streaming.whole > room:
            self.drop_spare()
        return self.streaming.fit(room - self._beside)

    def drop_spare(self) -> bool:
        """Let go of what is kept for speed alone, unpatched values and wide copies of quantised ones; whether
        there was any."""
        had_wide = [layer.drop_wide() for layer in self._packed]
        return self._kept.drop_pristine() or any(had_wide)

    def widen(self, room: int) -> None:
        """Keep the values of quantised weights in the type to compute in beside them, as far as so many bytes
        go: the same products without widening at each. Not where weights are streamed."""
        if self.streaming is None or not self.is_whole:
            return
        with _plain_tensors():
            for layer in self._packed:
                if (size := layer.wide_bytes) <= room and layer.widen():
                    room -= size

    @property
    def is_whole(self) -> bool:
        """Whether all weights stay on the device."""
        return self.streaming is None or not self.streaming.streamed

    @property
    def filling(self) -> int:
        """Bytes that making a streamed weight takes beside its own place: as it is stored, or in float32
        while it is patched."""
        if self.streaming is None:
            return 0
        return max((self._making(n) for unit in self.streaming.moving for n in unit.natives), default=0)

    def _making(self, native: str) -> int:
        stored, is_packed = self.source.stored_bytes(native), self._slots[native][0].layer is not None
        if native not in self._uses or (is_packed and not self._is_merged(native)):
            return stored
        return 4 * torch.Size(self.source.shapes[native]).numel() + is_packed * stored

    def close(self) -> None:
        """Let go of the memory now, not when Python comes across the cycles."""
        if self.streaming is not None:
            self.streaming.close()
            self.streaming = None

    def fill(self, natives: Iterable[str]) -> None:
        """Give empty slots the values of the present stack."""
        self._kept.ask_anew()
        with _plain_tensors():
            for native in natives:
                self._absent.discard(native)
                self._change(native, self._uses.get(native))

    def empty(self, natives: Iterable[str]) -> None:
        """Take the values out of slots; what uses them nevertheless fails."""
        for native in natives:
            self._absent.add(native)
            self._applied.pop(native, None)
            self._kept.take_back(native)
            for slot in self._slots[native]:
                slot.empty(self._dtype_of(native))

    def pin(self, natives: Iterable[str]) -> None:
        """Prepare weights that are going to be filled again and again."""
        for native in natives:
            self._kept.pin(native)

    def _sizes_now(self) -> dict[str, int]:
        return {native: self.size_of(native) for native in self._slots}

    def _is_merged(self, native: str) -> bool:
        """Whether a quantised weight carries its changes widened, because they cannot run beside it."""
        layers, uses = [slot.layer for slot in self._slots[native] if slot.layer], self._uses.get(native, [])
        return bool(layers and uses) and not (is_factored(uses) and _can_be_beside(layers))

    def size_of(self, native: str) -> int:
        """Bytes of a native weight on the device with the present stack, without what runs beside it."""
        slots, count = self._slots[native], torch.Size(self.source.shapes[native]).numel()
        if self._is_merged(native):
            return count * self.dtype.itemsize
        if not slots[0].layer:
            return count * self._dtype_of(native).itemsize
        narrow = narrow_type(self.storage)
        if narrow is not None and not self.source.is_packed(native):
            return count * narrow.itemsize
        return self.source.stored_bytes(native)

    def _empty_module(self, blueprint: Blueprint) -> nn.Module:
        for native, shape in self.source.shapes.items():
            if 0 in shape and not is_unused(native, blueprint):
                raise ModelFileError(f"the weight {native!r} is empty: shape {list(shape)}")
        with from_shapes("a network that can be built"):
            module = build_unfilled(blueprint.build)
        with_less_work(module)
        return module.eval().requires_grad_(False)

    @property
    def nbytes(self) -> int:
        """Bytes of the module's parameters, buffers and quantised weights."""
        if self.streaming is not None:
            return self.streaming.held + self._beside
        plain = sum(t.nbytes for t in (*self.module.parameters(), *self.module.buffers()))
        return plain + sum(layer.stored_bytes for layer in self._packed) + self._kept.nbytes

    @property
    def _beside(self) -> int:
        """Bytes kept beside streamed or streamable weights."""
        return self._kept.nbytes + sum(x.wide.nbytes for x in self._packed if x.wide is not None)

    def apply(self, stack: Stack, room: Callable[[], int] | None = None) -> int:
        """Make the weights those of the base with `stack`; the number of native weights rebuilt. room: bytes
        that they may then take on the device, with what is beside them; None: as many as they do."""
        if stack == self._stack:
            return 0
        self._stack, self._uses = None, self._wanted(stack)  # until all is rebuilt
        streaming, allowed = self.streaming, None
        if streaming is not None:
            streaming.settle()
            if self._sizes != self._sizes_now():
                allowed = room() if room else self.nbytes
                self._sizes = {}  # so that it is planned later, should what follows fail
                streaming.vacate()
        if self.device.type != "cpu":
            self._kept.keep_patches(patch for uses in self._uses.values() for patch, _ in uses)
            self._kept.ask_anew()
        if allowed is not None:
            self._arrange(allowed)
        changed = [
            native
            for native in dict.fromkeys((*self._applied, *self._uses))
            if native not in self._absent
            and signature_of(self._uses.get(native, ())) != self._applied.get(native, ())
        ]
        with _plain_tensors():
            for native in changed:
                self._change(native, self._uses.get(native))
        self._stack = stack
        return len(changed)

    def coming(self, stack: Stack) -> int:
        """Bytes that a stack takes on the device beyond what is there: factors, and quantised weights that it
        widens."""
        if stack == self._stack or self.device.type == "cpu":
            return 0
        wanted, before = self._wanted(stack), self._uses
        factors = self._kept.coming(patch for uses in wanted.values() for patch, _ in uses)
        try:
            self._uses = wanted
            now = {native: self.size_of(native) for native in wanted if native not in self._absent}
        finally:
            self._uses = before
        return factors + sum(max(0, size - self._sizes.get(native, size)) for native, size in now.items())

    def _change(self, native: str, uses: Uses | None) -> None:
        """Bring one native weight to what is wanted; after a failure it counts as unknown."""
        is_base = native not in self._applied
        self._applied[native] = _UNKNOWN
        if uses is not None and is_base:
            self._set_aside(native)
        if uses is None:
            self._restore(native)
            del self._applied[native]
        else:
            self._rebuild(native, uses)
            self._applied[native] = signature_of(uses)

    def _wanted(self, stack: Stack) -> dict[str, Uses]:
        wanted: dict[str, Uses] = defaultdict(list)
        for use in stack:
            if use.strength != 0:
                for native, patches in use.source.patches().items():
                    if native in self._slots:
                        wanted[native].extend((patch, use.strength) for patch in patches)
        return wanted

    def _restore(self, native: str) -> None:
        """Give all slots that a native weight feeds the file's values."""
        slots = self._slots[native]
        if slots[0].layer:
            self._hold_packed(native)
        elif self._is_mappable(native):
            whole = self.source.map(native)
            self._mapped.add(native)
            for slot in slots:
                slot.put(slot.cut(whole).reshape(slot.shape))
        elif (pristine := self._kept.take_back(native)) is not None:
            dtype = self._dtype_of(native)
            for slot in slots:
                slot.put(slot.cut(pristine).to(dtype).reshape(slot.shape).contiguous())
        else:
            dtype = self._dtype_of(native)
            whole = self._unpatched(native, dtype, order=self._order_of(native, dtype))
            self._write(native, whole, keep=True)

    def _rebuild(self, native: str, uses: Uses) -> None:
        """Give all slots that a native weight feeds the patched values."""
        layers = [slot.layer for slot in self._slots[native] if slot.layer]
        if layers and (factors := factors_of(uses)) is not None and _can_be_beside(layers):
            if any(layer.packed is None for layer in layers):
                self._hold_packed(native)
            self._attach(native, factors)
            return
        memory = whole = self._unpatched(native, torch.float32, again=True)
        uses = uses if self.device.type == "cpu" else self._kept.here(uses)
        for patch, strength in joined(uses):
            whole = patched(whole, patch, strength)
        for slot in self._slots[native] if layers else ():
            if layer := slot.layer:
                layer.merge(slot.cut(whole).to(self.device, self.dtype, copy=True))
        if not layers:
            self._write(native, whole, keep=whole is memory)

    def _unpatched(
        self,
        native: str,
        dtype: torch.dtype,
        *,
        order: torch.memory_format = torch.contiguous_format,
        again: bool = False,
    ) -> Tensor:
        """The file's values, where the weight is to be built, in memory that may be changed. order: of the
        memory, on the CPU. again: they are likely to be asked for again."""
        if self.device.type == "cpu":
            memory = self._memory_for(native, dtype, order)
            self.source.read_into(native, memory)
            return memory
        values = self._kept.values(native)
        if again and not self.source.is_packed(native):
            self._kept.set_aside(native, values)
        is_kept = self._kept.pristine(native) is not None
        return values.to(dtype, copy=is_kept, memory_format=torch.contiguous_format)

    def _set_aside(self, native: str) -> None:
        """Keep an unpatched weight on the device, if it is there whole, for the next change of its LoRAs."""
        (slot, *others) = self._slots[native]
        values = slot.tensor if not slot.layer else None
        if values is None or others or slot.placement.rows or values.device.type != self.device.type:
            return
        if self.device.type != "cpu":
            self._kept.set_aside(native, values)

    def _write(self, native: str, whole: Tensor, *, keep: bool) -> None:
        """Give the slots a weight's values; keep: they may stay in its memory, which is nobody else's."""
        dtype = self._dtype_of(native)
        pristine = self._kept.pristine(native)
        for slot in self._slots[native]:
            own = native not in self._mapped
            if pristine is not None:
                own = slot.tensor.data_ptr() != pristine.data_ptr()
            slot.write(slot.cut(whole), dtype, self.device, in_place=own, keep=keep)
        self._mapped.discard(native)

    def _order_of(self, native: str, dtype: torch.dtype) -> torch.memory_format:
        """The order in which the only slot of a weight wants its values."""
        slot, *others = self._slots[native]
        if others or slot.placement.rows or slot.shape != self.source.shapes[native]:
            return torch.contiguous_format
        return slot.order(dtype, self.device)

    def _memory_for(self, native: str, dtype: torch.dtype, order: torch.memory_format) -> Tensor:
        """Memory to build a native weight in: that of its only slot where it can be, else new."""
        slots, shape = self._slots[native], self.source.shapes[native]
        if len(slots) == 1 and native not in self._mapped and not slots[0].layer:
            own = slots[0].tensor
            fits = (
                own.device.type == self.device.type == "cpu"
                and own.dtype == dtype
                and own.numel() == torch.Size(shape).numel()
            )
            if fits and own.is_contiguous(memory_format=order) and not slots[0].placement.rows:
                return own.detach().view(shape)
        return torch.empty(shape, dtype=dtype, memory_format=order)

    def _dtype_of(self, native: str) -> torch.dtype:
        stored = self.source.dtypes[native]
        computing = torch.float32 if native in self._exact else self.dtype
        return computing if stored.is_floating_point else stored

    def _is_mappable(self, native: str) -> bool:
        """Whether the file's own pages can serve as the weight."""
        dtype = self._dtype_of(native)
        is_as_needed = self.source.dtypes[native] == dtype and all(
            slot.order(dtype, self.device) == torch.contiguous_format for slot in self._slots[native]
        )
        return self.device.type == "cpu" and is_as_needed and not self.source.is_packed(native)

    def _stays_packed(self, native: str) -> bool:
        """Whether a weight that has layers of its own is kept narrower than the type to compute in."""
        if self.source.is_packed(native):
            return self.source.stays_packed(native)
        stored = self.source.dtypes[native]
        if not stored.is_floating_point or stored.itemsize > 4:
            return False
        return narrow_type(self.storage) is not None or (self.storage == "stored" and stored != self.dtype)

    def _hold_packed(self, native: str) -> None:
        """Give a weight's layers its values as they are stored."""
        packed, narrow = self._kept.packed(native), narrow_type(self.storage)
        if packed is None and narrow is not None:
            limit = torch.finfo(narrow).max
            packed = narrowed(self.source.read(native, torch.float32).clamp_(-limit, limit).to(narrow))
        elif packed is None:
            packed = narrowed(self.source.map(native))
        if self.storage == "multiplied":
            packed = packed.multiplied()
        for slot in self._slots[native]:
            if layer := slot.layer:
                layer.hold(packed.rows(slot.placement.rows).to(self.device))

    def _attach(self, native: str, factors: Iterable[tuple[Tensor, Tensor, int]]) -> None:
        """Put low-rank changes (down, up, first row) beside a compressed weight."""
        rows = self.source.shapes[native][0]
        for slot in self._slots[native]:
            pairs: list[tuple[Tensor, Tensor]] = []
            for down, up, first in factors:
                whole = up.new_zeros(rows, up.shape[1])
                whole[first : first + len(up)] = up
                own = slot.cut(whole)
                if bool(own.any()):
                    pairs.append((down.to(self.device), own.to(self.device)))
            if layer := slot.layer:
                layer.low_rank = join_low_rank(pairs, self.dtype)


def _can_be_beside(layers: Iterable[PackedLayer]) -> bool:
    return all(isinstance(layer, PackedLinear) for layer in layers)


@contextmanager
def _plain_tensors() -> Generator[None, None, None]:
    """No gradients, and tensors that may be changed later whatever mode the caller is in."""
    with torch.inference_mode(False), torch.no_grad():
        yield
