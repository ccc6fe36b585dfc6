"""A module in memory, filled from a weight source and kept in step with a LoRA stack.

There is one copy of every weight. Which LoRAs a native weight carries is its signature; when the wanted
signature differs, that weight alone is rebuilt: read again from the file, patched in float32, rounded once.
An empty signature therefore is the base, bit for bit.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, Placement
from loraloom.weights.patch import Patch, Stack
from loraloom.weights.source import WeightSource

Signature: TypeAlias = "tuple[tuple[Hashable, float], ...]"
"""What is applied to one native weight: (content of the patch, strength), in order."""

Uses: TypeAlias = "list[tuple[Patch, float]]"

_UNKNOWN: Signature = (("being rebuilt", 0.0),)


@dataclass(frozen=True, slots=True)
class _Slot:
    """One parameter or buffer of the module that a native weight feeds."""

    owner: nn.Module
    attribute: str
    shape: torch.Size
    placement: Placement

    @property
    def tensor(self) -> Tensor:
        return getattr(self.owner, self.attribute)

    def put(self, tensor: Tensor) -> None:
        if isinstance(self.tensor, nn.Parameter):
            self.owner._parameters[self.attribute] = nn.Parameter(tensor, requires_grad=False)
        else:
            self.owner._buffers[self.attribute] = tensor

    def cut(self, native: Tensor) -> Tensor:
        """The parameter's value from the native weight's: a view where the rows are in one range."""
        rows = self.placement.rows
        if not rows:
            return native
        parts = [native[begin:end] for begin, end in rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Resident:
    """A module with its weights in memory.

    dtype: the type to compute in. Weights stored in it are mapped from the file without a copy where the
    device allows it; others are converted tensor by tensor.
    """

    def __init__(
        self, blueprint: Blueprint, source: WeightSource, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.device = device
        with torch.device("meta"):
            self.module = blueprint.build()
        self.module.eval().requires_grad_(False)
        self._slots = _slots(self.module, blueprint, source)
        self._applied: dict[str, Signature] = {}
        self._stack: Stack = ()
        for native in self._slots:
            self._restore(native)

    @property
    def nbytes(self) -> int:
        """Bytes of the module's parameters and buffers."""
        return sum(t.nbytes for t in (*self.module.parameters(), *self.module.buffers()))

    def apply(self, stack: Stack) -> int:
        """Make the weights those of the base with `stack`; the number of native weights rebuilt."""
        if stack == self._stack:
            return 0
        wanted = self._wanted(stack)
        changed = [
            native
            for native in {*self._applied, *wanted}
            if _signature(wanted.get(native, [])) != self._applied.get(native, ())
        ]
        self._stack = ((),)[:0]  # nothing is promised until all is rebuilt
        for native in changed:
            self._applied[native] = _UNKNOWN
            if native in wanted:
                self._rebuild(native, wanted[native])
                self._applied[native] = _signature(wanted[native])
            else:
                self._restore(native)
                del self._applied[native]
        self._stack = stack
        return len(changed)

    def _wanted(self, stack: Stack) -> dict[str, Uses]:
        wanted: dict[str, Uses] = defaultdict(list)
        for use in stack:
            if use.strength == 0:
                continue
            for native, patches in use.source.patches().items():
                if native in self._slots:
                    wanted[native].extend((patch, use.strength) for patch in patches)
        return wanted

    def _restore(self, native: str) -> None:
        """Give all parameters that a native weight feeds the file's values."""
        slots = self._slots[native]
        if self._is_mappable(native):
            whole = self.source.map(native)
            for slot in slots:
                slot.put(slot.cut(whole).reshape(slot.shape))
            return
        whole = self.source.read(native)
        for slot in slots:
            self._write(slot, slot.cut(whole).reshape(slot.shape))

    def _is_mappable(self, native: str) -> bool:
        return self.device.type == "cpu" and self.source.dtypes[native] == self._dtype_of(native)

    def _dtype_of(self, native: str) -> torch.dtype:
        stored = self.source.dtypes[native]
        return self.dtype if stored.is_floating_point else stored

    def _rebuild(self, native: str, uses: Uses) -> None:
        whole = self.source.read(native, torch.float32)
        for patch, strength in uses:
            whole = _patched(whole, patch, strength)
        for slot in self._slots[native]:
            value = slot.cut(whole)
            self._write(slot, value.reshape(slot.shape) if value.numel() == slot.shape.numel() else value)

    def _write(self, slot: _Slot, value: Tensor) -> None:
        """Round once, into the parameter's own memory where it has some."""
        now = slot.tensor
        dtype = self.dtype if value.is_floating_point() else value.dtype
        if now.device.type == "meta" or now.shape != value.shape or not now.is_contiguous():
            slot.put(value.to(self.device, dtype, copy=True).contiguous())
        else:
            now.data.copy_(value)


def _patched(whole: Tensor, patch: Patch, strength: float) -> Tensor:
    """A native weight with one patch more."""
    if patch.rows is None:
        return patch.apply(whole, strength)
    begin, end = patch.rows
    before = whole[begin:end]
    after = patch.apply(before, strength)
    if after.shape[1:] != before.shape[1:]:
        raise ModelFileError("a LoRA that enlarges a weight cannot be applied to a part of its rows")
    if after.data_ptr() != before.data_ptr():
        before.copy_(after)
    return whole


def _signature(uses: Uses) -> Signature:
    return tuple((patch.signature, strength) for patch, strength in uses)


def _slots(module: nn.Module, blueprint: Blueprint, source: WeightSource) -> Mapping[str, tuple[_Slot, ...]]:
    """Native name → what it feeds; ModelFileError when file and module do not fit."""
    found: dict[str, list[_Slot]] = defaultdict(list)
    missing: list[str] = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        placement = blueprint.placements.get(name)
        if placement is None or placement.native not in source:
            missing.append(name if placement is None else placement.native)
            continue
        path, _, attribute = name.rpartition(".")
        slot = _Slot(module.get_submodule(path), attribute, tensor.shape, placement)
        _check_shape(slot, source.shapes[placement.native])
        found[placement.native].append(slot)
    extra = [
        native
        for native in source.shapes
        if native not in found and not any(fnmatch.fnmatchcase(native, p) for p in blueprint.unused)
    ]
    if missing or extra:
        files = ", ".join(str(file.path) for file in source.files)
        problems = [
            f"{len(names)} {what}: {_some(names)}"
            for what, names in (("missing", missing), ("unknown", extra))
            if names
        ]
        raise ModelFileError(f"{files}: the weights do not fit the model: {'; '.join(problems)}")
    return {native: tuple(slots) for native, slots in found.items()}


def _check_shape(slot: _Slot, shape: tuple[int, ...]) -> None:
    rows = slot.placement.rows
    count = torch.Size(shape).numel()
    if rows:
        per_row = count // shape[0]
        count = sum(end - begin for begin, end in rows) * per_row
    if count != slot.shape.numel():
        raise ModelFileError(
            f"the weight {slot.placement.native!r} has shape {list(shape)}; {list(slot.shape)} was expected"
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(listed[:8]) + more
