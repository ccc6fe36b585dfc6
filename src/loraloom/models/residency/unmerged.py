"""LoRAs that run beside a module's weights for the time of a call: y += strength · B(A x).

The weights stay as they are, so that LoRAs of single conditionings, at strengths that change from step to
step, cost no rebuilding. What has no factored form runs beside them as a whole difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.errors import InputError
from loraloom.models.family import Placement, Placements
from loraloom.weights.patch import Patch, Stack
from loraloom.weights.source import WeightSource

Addition: TypeAlias = "Callable[[nn.Module, Tensor], Tensor]"
"""(layer, its input) → what is added to its output."""


@dataclass(frozen=True, eq=False)
class Unmerged:
    """A stack that runs beside the weights of modules built from `placements`, filled from `source`."""

    placements: Placements
    source: WeightSource
    stack: Stack

    @contextmanager
    def on(self, module: nn.Module) -> Generator[None]:
        """Act for the time of the context."""
        handles = [
            module.get_submodule(path).register_forward_hook(_Add(additions))
            for path, additions in self._additions.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @cached_property
    def _additions(self) -> dict[str, list[Addition]]:
        """Path of a layer → what is added to its output."""
        uses = [
            (native, patch, use.strength)
            for use in self.stack
            for native, patches in use.source.patches().items()
            for patch in patches
        ]
        fed: dict[str, list[tuple[str, Placement]]] = defaultdict(list)
        for name, placement in self.placements.items():
            fed[placement.native].append((name, placement))
        found: dict[str, list[Addition]] = defaultdict(list)
        for native, patch, strength in uses:
            for name, placement in fed.get(native, ()):
                path, _, attribute = name.rpartition(".")
                found[path].append(self._addition(attribute, native, placement, patch, strength))
        return dict(found)

    def _addition(
        self, attribute: str, native: str, placement: Placement, patch: Patch, strength: float
    ) -> Addition:
        factors = patch.factors()
        if attribute == "weight" and factors is not None:
            rows = self.source.shapes[native][0]
            first = 0 if patch.rows is None else patch.rows[0]
            up = factors.up.new_zeros(rows, *factors.up.shape[1:])
            up[first : first + len(factors.up)] = factors.up * strength
            return _LowRank(factors.down, _cut(up, placement))
        difference = _cut(self._difference(native, patch, strength), placement)
        return _Whole(difference) if attribute == "weight" else _Bias(difference)

    def _difference(self, native: str, patch: Patch, strength: float) -> Tensor:
        """What a patch adds to a native weight."""
        whole = self.source.read(native, torch.float32)
        begin, end = patch.rows or (0, len(whole))
        before = whole[begin:end].clone()
        after = patch.apply(before.clone(), strength)
        if after.shape != before.shape:
            raise InputError(f"A LoRA that enlarges {native!r} cannot belong to a single conditioning.")
        difference = torch.zeros_like(whole)
        difference[begin:end] = after - before
        return difference


def _cut(native: Tensor, placement: Placement) -> Tensor:
    return torch.cat([native[begin:end] for begin, end in placement.rows]) if placement.rows else native


@dataclass(frozen=True, slots=True)
class _Add:
    additions: list[Addition]

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        for addition in self.additions:
            output = output + addition(layer, inputs[0])
        return output


@dataclass(slots=True)
class _LowRank:
    down: Tensor
    up: Tensor

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        down, up = self.down, self.up = self.down.to(x), self.up.to(x)
        if isinstance(layer, nn.Conv2d):
            inner = F.conv2d(x, down.reshape(len(down), -1, 1, 1), stride=layer.stride)
            return F.conv2d(inner, up.reshape(len(up), -1, 1, 1))
        return F.linear(F.linear(x, down.flatten(1)), up.flatten(1))


@dataclass(slots=True)
class _Whole:
    difference: Tensor

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        difference = self.difference = self.difference.to(x)
        if isinstance(layer, nn.Conv2d):
            kernel = difference.reshape(layer.weight.shape)
            return F.conv2d(x, kernel, stride=layer.stride, padding=layer.padding)
        if isinstance(layer, nn.GroupNorm):
            normal = F.group_norm(x, layer.num_groups, eps=layer.eps)
            return normal * difference.reshape(-1, *[1] * (x.ndim - 2))
        if isinstance(layer, nn.LayerNorm):
            return F.layer_norm(x, layer.normalized_shape, eps=layer.eps) * difference
        return F.linear(x, difference.flatten(1))


@dataclass(slots=True)
class _Bias:
    difference: Tensor

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        difference = self.difference = self.difference.to(x)
        is_image = isinstance(layer, nn.Conv2d | nn.GroupNorm)
        return difference[:, None, None] if is_image else difference
