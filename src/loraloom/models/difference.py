"""A model as a LoRA: what tells its weights from another's of the same shapes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.weights.patch import Factors, Rows
from loraloom.weights.source import WeightSource


@dataclass(frozen=True, slots=True)
class _Step:
    """From one model's weight towards the other's: all the way at strength 1 (a `weights.patch.Patch`)."""

    native: str
    base: WeightSource
    other: WeightSource

    @property
    def signature(self) -> Hashable:
        return ("difference", self.native, self.base, self.other)

    @property
    def rows(self) -> Rows:
        return None

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        base, other = (source.read(self.native, torch.float32) for source in (self.base, self.other))
        return weight + (other - base) * strength

    def factors(self) -> Factors | None:
        return None


@dataclass(frozen=True)
class ModelDifference:
    """A `weights.patch.PatchSource` that leads from `base` to `other`.

    Raises InputError where the two have no weight of one name and shape in common.
    """

    base: WeightSource
    other: WeightSource

    @property
    def digest(self) -> str:
        return f"difference/{hash((self.base, self.other))}"

    def patches(self) -> dict[str, list[_Step]]:
        return self._steps

    @cached_property
    def _steps(self) -> dict[str, list[_Step]]:
        shapes = self.base.shapes
        shared = [native for native, shape in self.other.shapes.items() if shapes.get(native) == shape]
        if not shared:
            names = ", ".join(file.path.name for file in self.other.files)
            raise InputError(f"{names} is a model of another kind; it has no weight in common with this one.")
        floating = [native for native in shared if self.base.dtypes[native].is_floating_point]
        return {native: [_Step(native, self.base, self.other)] for native in floating}
