"""Aspect buckets: sizes of about equally many pixels, so that pictures train in their own proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loraloom.training.dataset import Example

MAX_RATIO = 2.0
"""The longest bucket: twice as long as wide, and the other way round."""

Size = tuple[int, int]
"""Width and height in pixels."""


def bucket_sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """Every size in multiples of `step` that holds at most resolution² pixels and cannot grow further."""
    pixels = resolution * resolution
    if step > resolution:
        step = resolution
    sizes: set[Size] = set()
    for width in range(step, math.floor(resolution * math.sqrt(MAX_RATIO)) + 1, step):
        height = pixels // width // step * step
        if height and max(width / height, height / width) <= MAX_RATIO:
            sizes |= {(width, height), (height, width)}
    square = resolution // step * step
    return tuple(sorted(sizes | {(square, square)}))


def bucket_of(size: Size, sizes: Sequence[Size]) -> Size:
    """The bucket of the nearest proportions; of two equally near, the larger."""
    ratio = math.log(size[0] / size[1])
    return min(sizes, key=lambda s: (abs(math.log(s[0] / s[1]) - ratio), -s[0] * s[1]))


@dataclass(frozen=True, slots=True)
class Plan:
    """Which examples form which batch, for any step, from nothing but the seed.

    indices: examples with their repeats, grouped by bucket."""

    groups: tuple[tuple[int, ...], ...]
    batch: int
    seed: int

    @classmethod
    def of(cls, examples: Sequence[Example], buckets: Sequence[Size], batch: int, seed: int) -> Plan:
        groups: dict[Size, list[int]] = {}
        for index, (example, bucket) in enumerate(zip(examples, buckets, strict=True)):
            groups.setdefault(bucket, []).extend([index] * example.repeats)
        return cls(tuple(tuple(groups[bucket]) for bucket in sorted(groups)), batch, seed)

    @property
    def batches_per_epoch(self) -> int:
        return sum(math.ceil(len(group) / self.batch) for group in self.groups)

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of an epoch: one bucket per batch, shuffled within buckets and among batches."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        batches: list[list[int]] = []
        for group in self.groups:
            order = torch.randperm(len(group), generator=generator).tolist()
            shuffled = [group[i] for i in order]
            batches += [shuffled[i : i + self.batch] for i in range(0, len(shuffled), self.batch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
