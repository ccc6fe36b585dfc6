"""Conditionings made ready for one run: areas in latent units, masks at latent size, ranges in sigmas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.sampling.hooks import Hooks
from loraloom.sampling.inputs import Inputs, repeated
from loraloom.sampling.types import Cond, Conditioning, Network, Parametrisation, SampleContext

Area = tuple[int, int, int, int]
"""Height, width, top and left, in latent units."""

AREA_UNIT = 8
"""Pixels that areas are counted in, whatever a latent pixel stands for."""

SMALLEST_AREA = 8
FEATHER = 8
"""Latent pixels over which an area without mask fades at the edges that lie within the picture."""


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One conditioning as one network takes it.

    area: the part of the latent that it is evaluated on; None: all. mask: (1 or B, H, W).
    start, end: the sigmas between which it counts. hooks: LoRAs that it alone is evaluated with.
    is_default: it counts where, and as much as, the others of its side leave room.
    """

    inputs: Inputs
    area: Area | None = None
    mask: Tensor | None = None
    strength: float = 1.0
    start: float | None = None
    end: float | None = None
    hooks: Hooks = ()
    is_default: bool = False

    def active(self, sigma: float) -> bool:
        return not (
            (self.start is not None and sigma > self.start) or (self.end is not None and sigma < self.end)
        )

    def crop(self, tensor: Tensor) -> Tensor:
        """The entry's part of a tensor (…, H, W)."""
        if self.area is None:
            return tensor
        height, width, top, left = self.area
        return tensor[..., top : top + height, left : left + width]

    def weight(self, x: Tensor) -> Tensor:
        """(1 or B, 1, h, w): how much its prediction counts at each place of its crop of x (B, C, H, W)."""
        crop = self.crop(x)
        weight = x.new_full((1, 1, *crop.shape[-2:]), self.strength)
        if self.mask is not None:
            if self.mask.shape[-2:] != x.shape[-2:]:
                raise InputError(
                    "A conditioning's mask does not go with a sampler that changes the latent's size."
                )
            mask = self.crop(self.mask.to(x))[:, None]
            return weight * (mask if mask.shape[0] == 1 else repeated(mask, x.shape[0]))
        return weight if self.area is None else weight * _feathered(weight, self.area, x.shape[-2:])


def _feathered(weight: Tensor, area: Area, size: Sequence[int]) -> Tensor:
    fade = torch.ones_like(weight)
    for axis, dim in enumerate((-2, -1)):
        length, offset = area[axis], area[2 + axis]
        reach = min(FEATHER, weight.shape[dim] // 4)
        ramp = torch.arange(1, reach + 1, device=weight.device, dtype=weight.dtype) / max(reach, 1)
        shape = [1, 1, 1, 1]
        shape[dim] = reach
        if offset != 0:
            fade.narrow(dim, 0, reach).mul_(ramp.reshape(shape))
        if offset + length < size[axis]:
            fade.narrow(dim, weight.shape[dim] - reach, reach).mul_(ramp.flip(0).reshape(shape))
    return fade


def prepared(
    network: Network, conditionings: Mapping[str, tuple[Conditioning, str]], context: SampleContext
) -> dict[str, tuple[Entry, ...]]:
    """Name → entries, for conditionings given with the role that each plays for the network.

    Where one side has an area, every other side gets an entry for that area too: what is compared covers
    the same pixels.
    """
    sides = {
        name: [entry_of(network, cond, replace(context, role=role)) for cond in conditioning]
        for name, (conditioning, role) in conditionings.items()
    }
    for name, entries in sides.items():
        for entry in list(entries):
            for other, others in sides.items():
                if other != name:
                    others.extend(_opposite(others, entry))
    return {name: tuple(entries) for name, entries in sides.items()}


def entry_of(network: Network, cond: Cond, context: SampleContext) -> Entry:
    """Resolve what nodes attached to a conditioning. Raises InputError for an option of a wrong kind."""
    height, width = int(context.latent.shape[-2]), int(context.latent.shape[-1])
    mask = _mask(cond, height, width)
    area = _area(cond, height, width, network.latent_pixels)
    if mask is not None and cond.options.get("set_area_to_bounds"):
        area = bounds(mask)
    if area is not None:
        area = _clipped(area, height, width, network.latent_pixels)
    strength = _number(cond, "strength", 1.0)
    if mask is not None:
        strength *= _number(cond, "mask_strength", 1.0)
    device = context.latent.device
    return Entry(
        network.inputs(cond, context).mapped(lambda tensor: tensor.to(device)),
        area,
        mask,
        strength,
        _edge(cond, "start_percent", network.parametrisation),
        _edge(cond, "end_percent", network.parametrisation),
        cast("Hooks", cond.options.get("hooks", ())),
        bool(cond.options.get("default", False)),
    )


def _number(cond: Cond, name: str, default: float) -> float:
    value = cond.options.get(name, default)
    if not isinstance(value, int | float):
        raise InputError(f"A conditioning's {name!r} is {value!r}; a number was expected.")
    return float(value)


def _edge(cond: Cond, name: str, parametrisation: Parametrisation) -> float | None:
    return (
        None if cond.options.get(name) is None else parametrisation.percent_to_sigma(_number(cond, name, 0.0))
    )


def _area(cond: Cond, height: int, width: int, pixels: int) -> Area | None:
    area = cond.options.get("area")
    if area is None:
        return None
    numbers = tuple(cast("Sequence[float | str]", area))
    if numbers and numbers[0] == "percentage":
        h, w, y, x = (float(number) for number in numbers[1:5])
        return max(1, round(h * height)), max(1, round(w * width)), round(y * height), round(x * width)
    if len(numbers) != 4:
        raise InputError(f"A conditioning's area is {area!r}; height, width, top and left were expected.")
    h, w, y, x = (int(number) * AREA_UNIT // pixels for number in numbers)
    return max(1, h), max(1, w), y, x


def _clipped(area: Area, height: int, width: int, pixels: int) -> Area:
    h, w, top, left = area
    if top >= height or left >= width:
        raise InputError(
            f"A conditioning's area starts at row {top * pixels}, column {left * pixels}, outside the "
            f"picture of {width * pixels}x{height * pixels}. Move it into the picture or enlarge the picture."
        )
    return min(h, height - top), min(w, width - left), top, left


def _mask(cond: Cond, height: int, width: int) -> Tensor | None:
    mask = cond.options.get("mask")
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise InputError(f"A conditioning's mask is a {type(mask).__name__}; a tensor was expected.")
    mask = mask.float().reshape(-1, *mask.shape[-2:])
    if mask.shape[-2:] != (height, width):
        mask = torch.nn.functional.interpolate(mask[:, None], size=(height, width), mode="bilinear")[:, 0]
    return mask


def bounds(mask: Tensor) -> Area:
    """The box around what is not 0 in masks (B, H, W), at least 8 latent pixels wide and high."""
    marked = mask.abs().amax(dim=0) > 0
    if not marked.any():
        return SMALLEST_AREA, SMALLEST_AREA, 0, 0
    rows, columns = marked.any(dim=1).nonzero()[:, 0], marked.any(dim=0).nonzero()[:, 0]
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    return max(SMALLEST_AREA, height), max(SMALLEST_AREA, width), top, left


def _contains(outer: Area, inner: Area) -> bool:
    return (
        outer[2] <= inner[2]
        and outer[3] <= inner[3]
        and outer[2] + outer[0] >= inner[2] + inner[0]
        and outer[3] + outer[1] >= inner[3] + inner[1]
    )


def _opposite(others: Sequence[Entry], entry: Entry) -> list[Entry]:
    """What the other side lacks to match an entry's area: its smallest entry around it, on that area."""
    if entry.area is None:
        return []
    smallest: Entry | None = None
    for other in others:
        if other.area is None:
            smallest = smallest or other
        elif _contains(other.area, entry.area) and (
            smallest is None or smallest.area is None or _extent(smallest.area) > _extent(other.area)
        ):
            smallest = other
    if smallest is None or smallest.area == entry.area:
        return []
    return [replace(entry, inputs=smallest.inputs)]


def _extent(area: Area) -> int:
    return area[0] * area[1]
