"""The weights of a file on a device other than the CPU: how they get there, and what is kept there of them.

They cross as they are stored and are widened, patched and rounded there. Beside the module's own weights two
things are kept: the low-rank factors of the LoRAs in use, and, while there is room, the values that a weight
had before its first LoRA, so that another strength moves nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.weights.capacity import available_memory, is_allocation_failure
from loraloom.weights.packed import Packed
from loraloom.weights.patch import Factors, Patch, Rows
from loraloom.weights.source import WeightSource


@dataclass(frozen=True, slots=True, eq=False)
class LowRankPatch:
    """Low-rank changes of the same rows as one product: a single pass over the weight."""

    signature: Hashable
    rows: Rows
    low_rank: Factors

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        up, down = self.low_rank.up.to(weight), self.low_rank.down.to(weight)
        weight.view(len(weight), -1).addmm_(up, down, alpha=strength)
        return weight

    def factors(self) -> Factors | None:
        return self.low_rank


class DeviceWeights:
    """What a source's weights become on `device`. spare: bytes more that may be kept there."""

    def __init__(self, source: WeightSource, device: torch.device, spare: Callable[[], int]) -> None:
        self._source = source
        self._device = device
        self._spare = spare
        self._room: int | None = None  # what is left of it, once asked
        largest = max((torch.Size(shape).numel() for shape in source.shapes.values()), default=0)
        self._workspace = (
            3 * 4 * largest
        )  # what patching takes: a weight in float32, and products of its size
        self._pristine: dict[str, Tensor] = {}
        self._patches: dict[Hashable, Patch] = {}
        self._pinned: dict[str, Tensor] = {}
        self._pinned_packed: dict[str, Packed] = {}

    @property
    def nbytes(self) -> int:
        """Bytes kept on the device beside the module's weights."""
        return sum(tensor.nbytes for tensor in self._pristine.values()) + self.factor_bytes

    @property
    def factor_bytes(self) -> int:
        found = (patch.factors() for patch in self._patches.values())
        return sum(factors.down.nbytes + factors.up.nbytes for factors in found if factors)

    def values(self, native: str) -> Tensor:
        """The file's values on the device, not to be changed: as stored, quantised ones in float32."""
        if native in self._pristine:
            return self._pristine[native]
        if self._source.is_packed(native):
            packed = self.packed(native)
            if packed is not None:
                return packed.to(self._device).widened(torch.float32)
            return self._source.read(native, torch.float32).to(self._device)
        pinned = self._pinned.get(native)
        if pinned is not None:
            return pinned.to(self._device, non_blocking=True)
        return self._source.map(native).to(self._device)

    def packed(self, native: str) -> Packed | None:
        """A quantised weight in the host's memory; None where its values are all that the file gives."""
        return self._pinned_packed.get(native) or self._source.packed(native, mapped=True)

    def pin(self, native: str) -> None:
        """Keep a weight in the host's memory where the device can fetch it by itself, if it is one that does
        and there is room, also by the system's own limit of such memory."""
        fetches = self._device.type in ("cuda", "xpu")
        is_new = native not in self._pinned and native not in self._pinned_packed
        if not fetches or not is_new:
            return
        if 2 * self._source.stored_bytes(native) >= available_memory(torch.device("cpu")):
            return
        try:
            if not self._source.is_packed(native):
                self._pinned[native] = self._source.map(native).pin_memory()
            elif (packed := self._source.packed(native, mapped=True)) is not None:
                self._pinned_packed[native] = packed.pinned()
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise

    def unpin(self) -> None:
        """Keep none of them there any more: the host has better use for such memory."""
        self._pinned.clear()
        self._pinned_packed.clear()

    def pristine(self, native: str) -> Tensor | None:
        return self._pristine.get(native)

    def ask_anew(self) -> None:
        """How much is spare has changed; it is asked when it matters, once for all weights that follow."""
        self._room = None

    def set_aside(self, native: str, values: Tensor) -> None:
        """Keep a weight's unpatched values if nothing was rounded away and there is room for both."""
        if native in self._pristine:
            return
        stored = self._source.dtypes[native]
        is_exact = values.dtype == stored or (values.dtype == torch.float32 and stored.itemsize <= 4)
        if is_exact and self._room is None:
            self._room = self._spare() - self._workspace
        if is_exact and self._room is not None and values.nbytes <= self._room:
            self._pristine[native] = values.detach().reshape(self._source.shapes[native])
            self._room -= values.nbytes

    def take_back(self, native: str) -> Tensor | None:
        """A weight's unpatched values, kept no longer."""
        return self._pristine.pop(native, None)

    def drop_pristine(self) -> bool:
        """Keep no unpatched values any more; whether there were any."""
        had, self._room = bool(self._pristine), 0
        self._pristine.clear()
        return had

    def here(self, uses: Iterable[tuple[Patch, float]]) -> list[tuple[Patch, float]]:
        """The same changes, low-rank factors on the device."""
        return [(self._patch(patch), strength) for patch, strength in uses]

    def keep_patches(self, patches: Iterable[Patch]) -> None:
        """Bring the factors of these patches, and drop those of all others."""
        wanted = {patch.signature: patch for patch in patches}
        self._patches = {key: patch for key, patch in self._patches.items() if key in wanted}
        for patch in wanted.values():
            self._patch(patch)

    def coming(self, patches: Iterable[Patch]) -> int:
        """Bytes of the factors that `keep_patches` would bring."""
        wanted = {patch.signature: patch for patch in patches}
        found = (patch.factors() for key, patch in wanted.items() if key not in self._patches)
        return sum(factors.down.nbytes + factors.up.nbytes for factors in found if factors)

    def _patch(self, patch: Patch) -> Patch:
        known = self._patches.get(patch.signature)
        if known is not None and known.rows == patch.rows:
            return known
        factors = patch.factors()
        if factors is None:
            return patch
        down, up = (factor.flatten(1).to(self._device) for factor in (factors.down, factors.up))
        made = LowRankPatch(patch.signature, patch.rows, Factors(down, up))
        self._patches[patch.signature] = made
        return made
