"""The latents of a family: as the autoencoder writes them on LATENT sockets, and as the network sees them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from loraloom.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor

COLOURS = "loraloom.latent_rgb"
"""Metadata of a model file whose latents are not its family's: JSON of three factors for each channel and the
bias, a row each."""


@dataclass(frozen=True, slots=True)
class LatentFormat:
    """network latent = (autoencoder latent - shift) · scale, or (… - mean) / deviation by channel.

    pixels: sides of the picture's square that one latent pixel stands for (8, 16, 32; 1: the latent is the
        picture). frames: whether the network takes latents with a further dimension, (B, C, F, H, W).
    framed: whether those on LATENT sockets have it, be it of one frame, as ComfyUI's do for autoencoders of
        films; nodes that turn or cut latents then take the frames for rows.
    rgb: (C, 3) factors and rgb_bias that turn a network latent into a rough picture in [-1, 1]. rgb_fold:
        latent pixels, in both directions, that the channels of one hold side by side (packed latents).
    autoencoder: the kind that writes them.
    tiny: name of the tiny autoencoder for it ("taesd"), whose decoder previews use where it is at hand.
    """

    name: str
    channels: int
    scale: float = 1.0
    shift: float = 0.0
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    pixels: int = 8
    frames: bool = False
    framed: bool = False
    rgb: tuple[tuple[float, float, float], ...] = ()
    rgb_bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rgb_fold: int = 1
    autoencoder: str = "kl"
    tiny: str = ""

    @property
    def decoders(self) -> tuple[str, ...]:
        """The kinds of autoencoder that are for these latents."""
        return (self.autoencoder, self.tiny) if self.tiny else (self.autoencoder,)

    def into(self, latent: Tensor) -> Tensor:
        """(B, C, …) as the autoencoder writes it → as the network sees it."""
        if not self.mean:
            return (latent - self.shift) * self.scale
        mean, deviation = self._by_channel(latent)
        return (latent - mean) / deviation

    def out_of(self, latent: Tensor) -> Tensor:
        """The inverse of `into`."""
        if not self.mean:
            return latent / self.scale + self.shift
        mean, deviation = self._by_channel(latent)
        return latent * deviation + mean

    def _by_channel(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (latent.dim() - 2))
        return latent.new_tensor(self.mean).view(shape), latent.new_tensor(self.deviation).view(shape)


def with_own_colours(latents: LatentFormat, metadata: Mapping[str, str]) -> LatentFormat:
    """The format with the colours that a model's file states, if it states any (`COLOURS`); the family's tiny
    autoencoder does not know such latents.

    Raises ModelFileError for what is no such table."""
    text = metadata.get(COLOURS)
    if text is None:
        return latents
    try:
        rows = [tuple(float(value) for value in row) for row in json.loads(text)]
    except (ValueError, TypeError, OverflowError, RecursionError):
        rows = []
    count = latents.channels + 1
    if len(rows) != count or not all(len(row) == 3 and all(map(math.isfinite, row)) for row in rows):
        raise ModelFileError(
            f"{COLOURS} in the file's metadata is {text[:80]!r}; expected JSON of {count} rows of "
            "three numbers: the factors of each channel, and the bias"
        )
    *factors, bias = cast("list[tuple[float, float, float]]", rows)
    return replace(latents, rgb=tuple(factors), rgb_bias=bias, rgb_fold=1, tiny="")
