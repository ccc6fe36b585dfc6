"""Reference pictures: what nodes attach to a conditioning, as a network takes it.

The ways to place them go by ComfyUI's names ("offset", "index", "uxo", "index_timestep_zero" …); which of
them a network has, and what each means to it, its family says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.diffusion_network import Run
from loraloom.models.parts.latent_maps import PATCH
from loraloom.sampling.types import Cond


def references(cond: Cond, run: Run) -> tuple[Tensor, ...]:
    """The reference latents (1 or B, C, h, w) of a conditioning as the network sees them, in order.
    InputError for latents of another family."""
    found: list[Tensor] = []
    for latent in cast("Sequence[Tensor]", cond.options.get("reference_latents") or ()):
        if latent.shape[1] != run.latents.channels:
            raise InputError(
                f"a reference latent has {latent.shape[1]} channels and this model works on "
                f"{run.latents.channels}: encode the picture with the autoencoder of this model's family"
            )
        if latent.ndim == 5 and (latent.shape[2] == 1 or not run.latents.frames):
            latent = latent[:, :, 0]
        found.append(run.latents.into(latent.float()))
    return tuple(found)


def placing(cond: Cond, known: Sequence[str], otherwise: str) -> str:
    """The way to place references that a conditioning asks for. InputError where the network has it not."""
    method = cast(str, cond.options.get("reference_latents_method") or otherwise)
    if method not in known:
        raise InputError(
            f"this model does not place reference pictures by the method {method!r}; it knows "
            f"{', '.join(known)}. Choose one in FluxKontextMultiReferenceLatentMethod, or leave the node out"
        )
    return method


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture lies among a network's positions: the first axis, and its corner on the two others."""

    index: int = 0
    top: int = 0
    left: int = 0

    def in_patches(self, patch: int = PATCH) -> Place:
        """The corner counted in patches, not before where it was."""
        return Place(self.index, -(-self.top // patch), -(-self.left // patch))


def places(method: str, new: Sequence[int], sizes: Sequence[Sequence[int]], step: int = 1) -> list[Place]:
    """Where reference pictures of these sizes (height, width) lie beside a new one, all in the same unit.

    "offset": all behind the new one, below or beside each other so that they cover little more than a square.
    "uxo": in its plane, each diagonally beyond those before. Others: one behind the other, `step` apart."""
    found: list[Place] = []
    tall, wide = new if method == "uxo" else (0, 0)
    for number, (height, width) in enumerate(sizes, 1):
        if method == "uxo":
            found.append(Place(0, tall, wide))
            tall, wide = tall + height, wide + width
        elif method == "offset":
            is_beside = height + tall > width + wide
            place = Place(1, 0, wide) if is_beside else Place(1, tall, 0)
            tall, wide = max(tall, place.top + height), max(wide, place.left + width)
            found.append(place)
        else:
            found.append(Place(number * step))
    return found


def grid(rows: int, columns: int, place: Place, axes: int = 3) -> Tensor:
    """(rows · columns, axes): (index, row, column, 0 …) of every token of a picture."""
    found = torch.zeros(rows, columns, axes)
    found[..., 0] = place.index
    found[..., 1] = torch.arange(rows)[:, None] + place.top
    found[..., 2] = torch.arange(columns) + place.left
    return found.reshape(-1, axes)
