"""Keys and values that attention made of some tokens, kept for the later steps of a run, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor

from loraloom.models.diffusion_network import Run
from loraloom.weights.capacity import available_memory
from loraloom.weights.formats import formats
from loraloom.weights.packed import Packed, packed_as

Storage: TypeAlias = Literal["default", "int8", "int4"]

BYTES: Mapping[Storage, float] = {"int8": 1.0, "int4": 0.5}
"""Of a value, without its row's scale."""

LARGEST_GROUP = 256
"""Values of a head that are turned together before they are rounded."""

MOST_KEPT = 4
"""Prompts whose tokens are kept at once: positive and negative ones, of areas too."""

SPARE = 1 << 30
"""Bytes of the host's memory that stay free."""


class KeptLayer:
    """What one block's attention keeps, (B, tokens, heads, D): `store` and `get` are diffusers' names.

    device: where it lies. storage: "int8" and "int4" round the values of each token and head to one scale,
    after a turn that evens them out (ConvRot)."""

    def __init__(self, device: torch.device, storage: Storage = "default") -> None:
        self.device, self.storage = device, storage
        self._kept: tuple[Tensor | Packed, ...] = ()
        self._like = torch.empty(0)

    def store(self, keys: Tensor, values: Tensor) -> None:
        self._like = keys.new_empty(0)
        self._shape = keys.shape
        self._kept = tuple(self._stored(part).to(self.device) for part in (keys, values))

    def get(self) -> tuple[Tensor, Tensor]:
        keys, values = map(self._values, self._kept)
        return keys, values

    def _stored(self, part: Tensor) -> Tensor | Packed:
        if self.storage == "default":
            return part.clone()
        width, group = part.shape[-1], LARGEST_GROUP
        while group > 4 and width % group:
            group //= 4
        name, option = ("int8", f"convrot{group}") if self.storage == "int8" else ("convrot_w4a4", str(group))
        rows = part.float().reshape(-1, width)
        return packed_as(formats()[name], rows, option) or part.clone()

    def _values(self, kept: Tensor | Packed) -> Tensor:
        there = kept.to(self._like.device)
        return there.widened(self._like.dtype).reshape(self._shape) if isinstance(there, Packed) else there


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """What is kept of tokens. given: the texts and pictures that they are of; size: of the new picture."""

    given: tuple[Tensor, ...]
    size: tuple[int, ...]
    layers: tuple[KeptLayer, ...]

    def is_of(self, given: Sequence[Tensor], size: tuple[int, ...]) -> bool:
        return (
            self.size == size
            and [own.shape for own in self.given] == [other.shape for other in given]
            and all(map(torch.equal, self.given, given))
        )


def kept_of(run: Run, given: Sequence[Tensor], size: tuple[int, ...]) -> Kept | None:
    """What an earlier step of the run kept of these texts and pictures, beside a new picture of this size."""
    return next((one for one in run.kept if isinstance(one, Kept) and one.is_of(given, size)), None)


def to_keep(
    run: Run, given: Sequence[Tensor], x: Tensor, *, tokens: int, width: int, layers: int
) -> Kept | None:
    """Room for so many tokens of that width in so many blocks, to be filled and appended to `run.kept`;
    None where there is no memory for it. Where it lies and how it is stored, `run.options` says:
    "kept_on" ("auto", "gpu", "cpu") and "kept_as" ("default", "int8", "int4")."""
    storage = cast(Storage, run.options.get("kept_as", "default"))
    each = BYTES.get(storage, run.dtype.itemsize)
    needed = int(2 * layers * len(x) * tokens * width * each)
    device = _where(run, str(run.options.get("kept_on", "auto")), x.device, needed)
    if device is None or len(run.kept) >= MOST_KEPT:
        return None
    copies = tuple(part.clone() for part in given)
    return Kept(copies, tuple(x.shape[-2:]), tuple(KeptLayer(device, storage) for _ in range(layers)))


def _where(run: Run, wanted: str, computes: torch.device, needed: int) -> torch.device | None:
    """The device that computes, where it has room and nobody says otherwise, else the host."""
    host = torch.device("cpu")
    if (wanted != "cpu" or computes == host) and run.has_room(needed):
        return computes
    if wanted == "gpu" or computes == host:
        return None
    return host if available_memory(host) - SPARE > needed else None
