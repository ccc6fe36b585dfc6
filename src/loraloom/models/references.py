"""Reference pictures: what nodes attach to a conditioning, as a network takes it.

The ways to place them go by ComfyUI's names ("offset", "index", "uxo", "index_timestep_zero" …); which of
them a network has, and what each means to it, its family says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.diffusion_network import Run
from loraloom.models.latent_maps import PATCH
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
        if latent.ndim == 5 and not run.latents.frames:
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


def laid_out(pictures: Sequence[Tensor], patch: int = PATCH) -> list[tuple[int, int]]:
    """Top and left of each reference, in patches, by the method "offset": beside each other so that the whole
    stays near to a square, to the right where it would else be higher than wide, else below."""
    height = width = 0
    places: list[tuple[int, int]] = []
    for picture in pictures:
        rows, columns = picture.shape[-2:]
        top, left = (0, width) if rows + height > columns + width else (height, 0)
        height, width = max(height, rows + top), max(width, columns + left)
        places.append((-(-top // patch), -(-left // patch)))
    return places
