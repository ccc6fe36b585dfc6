"""Where the weights of a file go within a module, and whether the two fit."""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, Placement
from loraloom.weights.layers import PackedLayer, packed_layer
from loraloom.weights.less_work import kernel_format
from loraloom.weights.source import WeightSource


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter or buffer of a module that a native weight feeds."""

    owner: nn.Module
    attribute: str
    shape: torch.Size
    placement: Placement

    @property
    def tensor(self) -> Tensor:
        return getattr(self.owner, self.attribute)

    @property
    def layer(self) -> PackedLayer | None:
        """The layer, when this is a weight that stays as its file stores it."""
        return self.owner if isinstance(self.owner, PackedLayer) and self.attribute == "weight" else None

    def cut(self, native: Tensor) -> Tensor:
        """The slot's values from the native weight's: a view where the rows are in one range."""
        parts = [native[begin:end] for begin, end in self.placement.rows]
        if not parts:
            return native
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def put(self, tensor: Tensor) -> None:
        """Let the module use this very tensor."""
        if isinstance(self.tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(self.owner, self.attribute, tensor)

    def empty(self, dtype: torch.dtype) -> None:
        """Let go of the values; the module keeps a tensor without memory."""
        if layer := self.layer:
            layer.let_go()
        else:
            self.put(torch.empty(self.shape, dtype=dtype, device="meta"))

    def write(
        self, values: Tensor, dtype: torch.dtype, device: torch.device, *, in_place: bool, keep: bool
    ) -> None:
        """Round the values once, in the order that the layer wants.

        in_place: into the memory that the slot has, where it fits. keep: the values' own memory may serve."""
        now = self.tensor
        values = values.reshape(self.shape) if values.numel() == self.shape.numel() else values
        is_there = in_place and now.device.type == device.type
        if is_there and now.dtype == values.dtype and now.data_ptr() == values.data_ptr() != 0:
            return  # built where it belongs
        order = self.order(dtype, device)
        is_fit = now.shape == values.shape and now.dtype == dtype and now.is_contiguous(memory_format=order)
        if is_there and is_fit:
            now.data.copy_(values)
        else:
            self.put(values.to(device, dtype, copy=not keep).contiguous(memory_format=order))

    def order(self, dtype: torch.dtype, device: torch.device) -> torch.memory_format:
        """How the values lie in memory."""
        is_kernel = self.attribute == "weight" and len(self.shape) == 4 and max(self.shape[2:]) > 1
        return kernel_format(self.owner, dtype, device) if is_kernel else torch.contiguous_format


Slots: TypeAlias = Mapping[str, tuple[Slot, ...]]
"""Native weight name → the slots that it feeds."""


def keep_packed(
    module: nn.Module, slots: Slots, stays_packed: Callable[[str], bool], dtype: torch.dtype, *, native: bool
) -> Slots:
    """Exchange the layers of weights that stay as stored for ones that widen them in use. A weight stays so
    where all its slots are such layers' own; native: see `PackedLayer`."""
    paths = {owner: path for path, owner in module.named_modules()}
    counts = Counter(id(slot.owner) for fed in slots.values() for slot in fed if slot.attribute == "weight")
    exchanged: dict[int, PackedLayer] = {}
    for name, fed in slots.items():
        if not stays_packed(name):
            continue
        made = [
            packed_layer(slot.owner, dtype, native)
            if slot.attribute == "weight" and counts[id(slot.owner)] == 1 and paths[slot.owner]
            else None
            for slot in fed
        ]
        for slot, layer in zip(fed, made, strict=True):
            if layer is not None and None not in made:
                parent, _, child = paths[slot.owner].rpartition(".")
                setattr(module.get_submodule(parent), child, layer)
                exchanged[id(slot.owner)] = layer
    return {
        native: tuple(replace(slot, owner=exchanged.get(id(slot.owner), slot.owner)) for slot in fed)
        for native, fed in slots.items()
    }


def find_slots(module: nn.Module, blueprint: Blueprint, source: WeightSource) -> Slots:
    """The slots of every native weight; ModelFileError names what does not fit."""
    found: dict[str, list[Slot]] = defaultdict(list)
    missing: list[str] = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        placement = blueprint.placements.get(name)
        if placement is None or placement.native not in source:
            missing.append(name if placement is None else placement.native)
            continue
        path, _, attribute = name.rpartition(".")
        slot = Slot(module.get_submodule(path), attribute, tensor.shape, placement)
        _check_shape(slot, source.shapes[placement.native])
        found[placement.native].append(slot)
    unknown = [native for native in source.shapes if native not in found and not is_unused(native, blueprint)]
    if missing or unknown:
        kinds = (("missing", set(missing)), ("unknown", unknown))
        problems = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names)
        raise ModelFileError(f"the weights do not fit the model: {problems}")
    return {native: tuple(slots) for native, slots in found.items()}


def is_unused(native: str, blueprint: Blueprint) -> bool:
    """Whether a file may hold a weight that the network has no use for."""
    return any(fnmatch.fnmatchcase(native, pattern) for pattern in blueprint.unused)


def _check_shape(slot: Slot, shape: tuple[int, ...]) -> None:
    count = torch.Size(shape).numel()
    if slot.placement.rows:
        rows = sum(end - begin for begin, end in slot.placement.rows)
        count = rows * (count // shape[0])
    if count != slot.shape.numel():
        raise ModelFileError(
            f"the weight {slot.placement.native!r} has shape {list(shape)}; {list(slot.shape)} was expected"
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(listed[:8]) + more
