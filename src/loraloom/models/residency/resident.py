"""A module in memory, filled from a weight source and kept in step with a LoRA stack.

Which LoRAs a native weight carries is its signature; when the wanted signature differs, that weight alone is
rebuilt (`values`). An empty signature therefore is the base, bit for bit.

On other devices than the CPU all of this happens there (`device_weights`), and a module may be larger than
what its weights may take: then some of them come when they are used (`streaming`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, from_shapes
from loraloom.models.residency.device_weights import DeviceWeights
from loraloom.models.residency.slots import find_slots, is_unused, keep_packed
from loraloom.models.residency.streaming import Streaming, find_units
from loraloom.models.residency.uses import Signature, Uses, signature_of
from loraloom.models.residency.values import Storage, Values, stays_packed
from loraloom.weights.layers import PackedLayer
from loraloom.weights.less_work import with_less_work
from loraloom.weights.meta import build_unfilled, complete
from loraloom.weights.patch import Patch, Stack
from loraloom.weights.source import WeightSource

Arithmetic: TypeAlias = Literal["native", "widened"]
"""How quantised weights are multiplied: as ComfyUI does for their format (for integers it rounds the inputs
too), or with their values in the type to compute in."""

_UNKNOWN: Signature = (("being rebuilt", 0.0),)


class TooSmall(torch.OutOfMemoryError):
    """Not even one layer after the other fits. least: bytes that it would take."""

    def __init__(self, least: int) -> None:
        super().__init__(f"{least / 1e9:.2f} GB are the least")
        self.least = least


class Resident:
    """A module with its weights in memory.

    dtype: the type to compute in. Weights stored in it are mapped from the file without a copy where the
        device allows it; others are converted tensor by tensor.
    storage: which weights of linear layers, embeddings and convolutions stay narrower and are widened when
        used: "quantized", those that the file has quantised; "stored", all as the file has them; an 8-bit
        type to round the others to; or "multiplied", which rounds to E4M3 and multiplies that with inputs
        that are rounded, too, on devices that can.
    room: bytes that the weights may take on the device; None: all that they need. spare: bytes more that may
        be kept there now. TooSmall where not even one layer after the other fits.
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
        exact = frozenset(
            placement.native
            for name, placement in blueprint.placements.items()
            if not set(blueprint.exact).isdisjoint(name.split("."))
        )
        with source.naming():
            self.module = self._empty_module(blueprint)
            self._slots = keep_packed(
                self.module,
                find_slots(self.module, blueprint, source),
                lambda native: stays_packed(source, native, dtype, storage),
                dtype,
                native=arithmetic == "native",
            )
        self._packed = [layer for layer in self.module.modules() if isinstance(layer, PackedLayer)]
        self._applied: dict[str, Signature] = {}
        self._stack: Stack | None = ()
        self._uses: dict[str, Uses] = {}
        self._kept = DeviceWeights(source, device, spare)
        self._values = Values(
            source, self._slots, exact, dtype=dtype, device=device, storage=storage, kept=self._kept
        )
        self._low_rank = 0  # bytes of what runs beside quantised weights, whether they stay or not
        self._products = self._products_with({})
        self._absent: set[str] = set()  # native weights whose slots are empty
        self._sizes: dict[str, int] = {}  # of each weight on the device, when what stays was planned
        self._computed = 0  # bytes of what is in no file
        self.streaming: Streaming | None = None
        try:
            self._load(room)
            with source.naming():
                complete(self.module, device, self._absent_tensors())
            self._computed = self._bytes_of_no_file()
        except BaseException:
            self.close()  # else what was filled stays until the next attempt has failed, too
            raise

    def _absent_tensors(self) -> list[Tensor]:
        slots = (slot for native in self._absent for slot in self._slots[native])
        return [slot.tensor for slot in slots if not slot.layer]

    def _bytes_of_no_file(self) -> int:
        filled = {id(slot.tensor) for fed in self._slots.values() for slot in fed if not slot.layer}
        held = (*self.module.parameters(), *self.module.buffers())
        return sum(tensor.nbytes for tensor in held if id(tensor) not in filled and not tensor.is_meta)

    def _load(self, room: int | None) -> None:
        if room is None or self.device.type == "cpu":
            with _plain_tensors():
                for native in self._slots:
                    self._values.restore(native)
            return
        self._absent = set(self._slots)
        self._arrange(room)

    def _arrange(self, room: int) -> None:
        """Plan which weights stay, by the bytes that each takes with the present stack, and fill them: none
        that may leave is there."""
        if self.streaming is not None:
            self.streaming.close()
        self._sizes = self._sizes_now()
        units, fixed = find_units(self._slots, self._sizes.__getitem__)
        self.streaming = Streaming(units, fixed, self, self.device)
        if room - self._beside < self.streaming.least:
            self._sizes = {}
            raise TooSmall(self.least)
        self.fill(self._absent - {native for unit in units for native in unit.natives})
        making = max((self._values.making(*use) for use in self._uses.items()), default=0)
        self.fit(max(room - making, self.streaming.least + self._beside))

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
    def least(self) -> int:
        """Bytes without which nothing goes."""
        return self.nbytes if self.streaming is None else self.streaming.least + self._beside

    @property
    def is_whole(self) -> bool:
        """Whether all weights stay on the device."""
        return self.streaming is None or not self.streaming.streamed

    @property
    def filling(self) -> int:
        """Bytes that making a streamed weight takes beside its own place."""
        if self.streaming is None:
            return 0
        moving = (native for unit in self.streaming.moving for native in unit.natives)
        return max((self._values.making(native, self._uses.get(native, [])) for native in moving), default=0)

    @property
    def working(self) -> int:
        """Bytes that the largest of the products with quantised weights takes beside its output."""
        if self.streaming is None:
            return 0
        narrow = (native for native in self._products if not self._values.is_wide(native))
        return max((self._products[native] for native in narrow), default=0)

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
            self._values.empty(native)

    def pin(self, natives: Iterable[str]) -> None:
        """Prepare weights that are going to be filled again and again."""
        for native in natives:
            self._kept.pin(native)

    def unpin(self) -> None:
        """None will be filled again and again any more."""
        self._kept.unpin()

    def _sizes_now(self) -> dict[str, int]:
        return {native: self.size_of(native) for native in self._slots}

    def size_of(self, native: str) -> int:
        """Bytes of a native weight on the device with the present stack, without what runs beside it."""
        return self._values.size_of(native, self._uses.get(native, []))

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
        wide = sum(layer.wide.nbytes for layer in self._packed if layer.wide is not None)
        return self._kept.nbytes + wide + self._low_rank + self._computed

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
            self._kept.keep_patches(self._patching(self._uses))
            self._kept.ask_anew()
            self._low_rank = self._beside_bytes(self._uses)
            self._products = self._products_with(self._uses)
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
        """Bytes that applying a stack takes on the device beyond what is there: factors, what runs beside
        quantised weights, those that it widens, and the making of the largest."""
        if stack == self._stack or self.device.type == "cpu":
            return 0
        wanted = self._wanted(stack)
        coming = self._kept.coming(self._patching(wanted))
        coming += max(0, self._beside_bytes(wanted) - self._low_rank)
        making = 0
        for native, uses in wanted.items():
            if native not in self._absent and signature_of(uses) != self._applied.get(native):
                size = self._values.size_of(native, uses)
                coming += max(0, size - self._sizes.get(native, size))
                making = max(making, self._values.making(native, uses))
        return coming + making

    def _patching(self, wanted: Mapping[str, Uses]) -> Iterable[Patch]:
        """The patches that weights are rebuilt with: those of which nothing runs beside them."""
        attached = self._values.is_attached
        return (patch for native, uses in wanted.items() if not attached(native, uses) for patch, _ in uses)

    def _products_with(self, wanted: Mapping[str, Uses]) -> dict[str, int]:
        """What products with quantised weights take, of those that take anything."""
        found = {native: self._values.working(native, wanted.get(native, [])) for native in self._slots}
        return {native: size for native, size in found.items() if size}

    def _beside_bytes(self, wanted: Mapping[str, Uses]) -> int:
        return sum(self._values.beside_bytes(native, uses) for native, uses in wanted.items())

    def _change(self, native: str, uses: Uses | None) -> None:
        """Bring one native weight to what is wanted; after a failure it counts as unknown."""
        is_base = native not in self._applied
        self._applied[native] = _UNKNOWN
        if uses is not None and is_base:
            self._values.set_aside(native)
        if uses is None:
            self._values.restore(native)
            del self._applied[native]
        else:
            self._values.rebuild(native, uses)
            self._applied[native] = signature_of(uses)

    def _wanted(self, stack: Stack) -> dict[str, Uses]:
        wanted: dict[str, Uses] = defaultdict(list)
        for use in stack:
            if use.strength != 0:
                for native, patches in use.source.patches().items():
                    if native in self._slots:
                        wanted[native].extend((patch, use.strength) for patch in patches)
        return wanted


@contextmanager
def _plain_tensors() -> Generator[None, None, None]:
    """No gradients, and tensors that may be changed later whatever mode the caller is in."""
    with torch.inference_mode(False), torch.no_grad():
        yield
