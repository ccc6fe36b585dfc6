"""The values of a module's weights: what a file has, or what LoRAs make of it, brought to where they belong.

There is one copy of every weight. One that is to be changed is read again from the file, patched in float32,
rounded once. Weights that stay quantised are not touched where the algebra allows: their LoRAs run beside
them. Where it does not, the one weight is widened and carries the change in the type to compute in; nothing
is rounded into the storage format again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from loraloom.models.residency.device_weights import DeviceWeights
from loraloom.models.residency.slots import Slots
from loraloom.models.residency.uses import Uses, factors_of, is_factored, joined, patched
from loraloom.weights.layers import PackedLayer, PackedLinear, join_low_rank
from loraloom.weights.packed import narrowed
from loraloom.weights.source import WeightSource

Storage: TypeAlias = 'Literal["quantized", "stored", "multiplied"] | torch.dtype'


def narrow_type(storage: Storage) -> torch.dtype | None:
    """The 8-bit type that weights are rounded to."""
    if isinstance(storage, torch.dtype):
        return storage
    return torch.float8_e4m3fn if storage == "multiplied" else None


def stays_packed(source: WeightSource, native: str, dtype: torch.dtype, storage: Storage) -> bool:
    """Whether a weight that has layers of its own is kept narrower than the type to compute in."""
    if source.is_packed(native):
        return source.stays_packed(native)
    stored = source.dtypes[native]
    if not stored.is_floating_point or stored.itemsize > 4:
        return False
    return narrow_type(storage) is not None or (storage == "stored" and stored != dtype)


class Values:
    """Fills the slots of a module.

    exact: native weights that stay in float32. kept: what is on the device of the file beside the module."""

    def __init__(
        self,
        source: WeightSource,
        slots: Slots,
        exact: frozenset[str],
        *,
        dtype: torch.dtype,
        device: torch.device,
        storage: Storage,
        kept: DeviceWeights,
    ) -> None:
        self._source, self._slots, self._exact, self._kept = source, slots, exact, kept
        self._dtype, self._device = dtype, device
        self._storage: Storage = storage
        self._mapped: set[str] = set()  # native weights that are the file's own pages: not to be written to

    def size_of(self, native: str, uses: Uses) -> int:
        """Bytes of a native weight on the device with these changes, without what runs beside it."""
        if self.is_merged(native, uses):
            return torch.Size(self._source.shapes[native]).numel() * self._dtype.itemsize
        if not self._slots[native][0].layer:
            return torch.Size(self._source.shapes[native]).numel() * self.dtype_of(native).itemsize
        narrow = narrow_type(self._storage)
        if narrow is not None and not self._source.is_packed(native):
            return torch.Size(self._source.shapes[native]).numel() * narrow.itemsize
        return self._source.stored_bytes(native)

    def beside_bytes(self, native: str, uses: Uses) -> int:
        """Bytes of the low-rank changes that run beside a quantised weight."""
        if not self.is_attached(native, uses):
            return 0
        found = (patch.factors() for patch, _ in uses)
        rank = sum(len(factors.down) for factors in found if factors)
        slots, width = self._slots[native], torch.Size(self._source.shapes[native][1:]).numel()
        return rank * sum(width + slot.shape[0] for slot in slots) * self._dtype.itemsize

    def making(self, native: str, uses: Uses) -> int:
        """Bytes that filling a weight takes on the device beside its own place: as it is stored, in float32
        while it is patched, with changes of its size, and those that run beside it before they are joined."""
        stored, is_packed = self._source.stored_bytes(native), bool(self._layers(native))
        if not uses or (is_packed and not self.is_merged(native, uses)):
            return stored + self.beside_bytes(native, uses)
        times = 1 if is_factored(uses) and not is_packed else 3
        return stored + times * 4 * torch.Size(self._source.shapes[native]).numel()

    def working(self, native: str, uses: Uses) -> int:
        """Bytes that a product with a quantised weight takes beside its output: the values widened, or the
        input rounded."""
        layers = self._layers(native)
        if not layers or self.is_merged(native, uses):
            return 0
        count = max(slot.shape.numel() for slot in self._slots[native])
        packing = self._source.packing(native)
        if packing is None:
            return count * self._dtype.itemsize
        if packing.rounds_inputs and all(layer.native for layer in layers):
            return 3 * count
        return (self._dtype.itemsize + packing.passing) * count

    def is_wide(self, native: str) -> bool:
        """Whether a quantised weight is kept wide, too."""
        return all(layer.wide is not None for layer in self._layers(native))

    def is_merged(self, native: str, uses: Uses) -> bool:
        """Whether a quantised weight carries its changes widened, because they cannot run beside it."""
        return bool(uses and self._layers(native)) and not self.is_attached(native, uses)

    def is_attached(self, native: str, uses: Uses) -> bool:
        """Whether changes run beside a quantised weight."""
        layers = self._layers(native)
        return bool(uses and layers) and is_factored(uses) and _can_be_beside(layers)

    def empty(self, native: str) -> None:
        """Take a weight out of its slots."""
        self._kept.take_back(native)
        for slot in self._slots[native]:
            slot.empty(self.dtype_of(native))

    def restore(self, native: str) -> None:
        """Give all slots that a native weight feeds the file's values."""
        slots = self._slots[native]
        if slots[0].layer:
            layers = self._layers(native)
            if any(layer.packed is None for layer in layers):
                self._hold_packed(native)
            for layer in layers:
                layer.low_rank = None
        elif self._is_mappable(native):
            whole = self._source.map(native)
            self._mapped.add(native)
            for slot in slots:
                slot.put(slot.cut(whole).reshape(slot.shape))
        elif (pristine := self._kept.take_back(native)) is not None:
            dtype = self.dtype_of(native)
            for slot in slots:
                slot.put(slot.cut(pristine).to(dtype).reshape(slot.shape).contiguous())
        else:
            dtype = self.dtype_of(native)
            whole = self._unpatched(native, dtype, order=self._order_of(native, dtype))
            self._write(native, whole, keep=True)

    def rebuild(self, native: str, uses: Uses) -> None:
        """Give all slots that a native weight feeds the patched values."""
        layers = self._layers(native)
        if (factors := factors_of(uses)) is not None and _can_be_beside(layers):
            if any(layer.packed is None for layer in layers):
                self._hold_packed(native)
            self._attach(native, factors)
            return
        memory = whole = self._unpatched(native, torch.float32, again=True)
        uses = uses if self._device.type == "cpu" else self._kept.here(uses)
        for patch, strength in joined(uses):
            whole = patched(whole, patch, strength)
        for slot in self._slots[native] if layers else ():
            if layer := slot.layer:
                layer.merge(slot.cut(whole).to(self._device, self._dtype, copy=True))
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
        if self._device.type == "cpu":
            memory = self._memory_for(native, dtype, order)
            self._source.read_into(native, memory)
            return memory
        values = self._kept.values(native)
        if again and not self._source.is_packed(native):
            self._kept.set_aside(native, values)
        is_kept = self._kept.pristine(native) is not None
        return values.to(dtype, copy=is_kept, memory_format=torch.contiguous_format)

    def set_aside(self, native: str) -> None:
        """Keep an unpatched weight on the device, if it is there whole, for the next change of its LoRAs."""
        (slot, *others) = self._slots[native]
        values = slot.tensor if not slot.layer else None
        if values is None or others or slot.placement.rows or values.device.type != self._device.type:
            return
        if self._device.type != "cpu":
            self._kept.set_aside(native, values)

    def _write(self, native: str, whole: Tensor, *, keep: bool) -> None:
        """Give the slots a weight's values; keep: they may stay in its memory, which is nobody else's."""
        dtype = self.dtype_of(native)
        pristine = self._kept.pristine(native)
        for slot in self._slots[native]:
            own = native not in self._mapped
            if pristine is not None:
                own = slot.tensor.data_ptr() != pristine.data_ptr()
            slot.write(slot.cut(whole), dtype, self._device, in_place=own, keep=keep)
        self._mapped.discard(native)

    def _order_of(self, native: str, dtype: torch.dtype) -> torch.memory_format:
        """The order in which the only slot of a weight wants its values."""
        slot, *others = self._slots[native]
        if others or slot.placement.rows or slot.shape != self._source.shapes[native]:
            return torch.contiguous_format
        return slot.order(dtype, self._device)

    def _memory_for(self, native: str, dtype: torch.dtype, order: torch.memory_format) -> Tensor:
        """Memory to build a native weight in: that of its only slot where it can be, else new."""
        slots, shape = self._slots[native], self._source.shapes[native]
        if len(slots) == 1 and native not in self._mapped and not slots[0].layer:
            own = slots[0].tensor
            fits = (
                own.device.type == self._device.type == "cpu"
                and own.dtype == dtype
                and own.numel() == torch.Size(shape).numel()
            )
            if fits and own.is_contiguous(memory_format=order) and not slots[0].placement.rows:
                return own.detach().view(shape)
        return torch.empty(shape, dtype=dtype, memory_format=order)

    def dtype_of(self, native: str) -> torch.dtype:
        stored = self._source.dtypes[native]
        computing = torch.float32 if native in self._exact else self._dtype
        return computing if stored.is_floating_point else stored

    def _is_mappable(self, native: str) -> bool:
        """Whether the file's own pages can serve as the weight."""
        dtype = self.dtype_of(native)
        is_as_needed = self._source.dtypes[native] == dtype and all(
            slot.order(dtype, self._device) == torch.contiguous_format for slot in self._slots[native]
        )
        return self._device.type == "cpu" and is_as_needed and not self._source.is_packed(native)

    def _hold_packed(self, native: str) -> None:
        """Give a weight's layers its values as they are stored."""
        packed, narrow = self._kept.packed(native), narrow_type(self._storage)
        if packed is None and narrow is not None:
            limit = torch.finfo(narrow).max
            packed = narrowed(self._source.read(native, torch.float32).clamp_(-limit, limit).to(narrow))
        elif packed is None:
            packed = narrowed(self._source.map(native))
        if self._storage == "multiplied":
            packed = packed.multiplied()
        for slot in self._slots[native]:
            if layer := slot.layer:
                layer.hold(packed.rows(slot.placement.rows).to(self._device))

    def _attach(self, native: str, factors: Iterable[tuple[Tensor, Tensor, int]]) -> None:
        """Put low-rank changes (down, up, first row) beside a compressed weight."""
        rows = self._source.shapes[native][0]
        for slot in self._slots[native]:
            pairs: list[tuple[Tensor, Tensor]] = []
            for down, up, first in factors:
                whole = up.new_zeros(rows, up.shape[1])
                whole[first : first + len(up)] = up
                own = slot.cut(whole)
                if bool(own.any()):
                    pairs.append((down.to(self._device, self._dtype), own.to(self._device, self._dtype)))
            if layer := slot.layer:
                layer.low_rank = join_low_rank(pairs, self._dtype)

    def _layers(self, native: str) -> list[PackedLayer]:
        """The layers that hold a weight as it is stored; none where it is plain."""
        return [slot.layer for slot in self._slots[native] if slot.layer]


def _can_be_beside(layers: Iterable[PackedLayer]) -> bool:
    found = list(layers)
    return bool(found) and all(isinstance(layer, PackedLinear) for layer in found)
