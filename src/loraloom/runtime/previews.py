"""Rough pictures of a latent while it is being sampled."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image as PillowImage
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.file_identity import FileIdentity
from loraloom.folders import ModelFolders
from loraloom.models.autoencoder_network import TinyDecoder
from loraloom.models.latent_format import LatentFormat, with_own_colours
from loraloom.models.residency.memory import Memory
from loraloom.sampling.types import Step
from loraloom.weights.capacity import is_allocation_failure


@dataclass(frozen=True, slots=True)
class LatentPreview:
    """The predicted clean latent of a step (C, H, W), turned into a picture only when somebody looks.

    is_free: whether so many bytes of the device are, for a decoder."""

    latent: Tensor
    format: LatentFormat
    decoder: TinyDecoder | None = None
    is_free: Callable[[int], bool] = lambda needed: True

    def picture(self, longest_side: int = 512, method: str = "auto") -> PillowImage.Image:
        """A picture of the first latent of the batch, at most `longest_side` pixels wide or high.

        method: "latent2rgb" mixes colours of the latent's channels; anything else decodes the latent where
        there is a decoder for it."""
        if self.decoder is not None and (method != "latent2rgb" or not self.format.rgb):
            return self._decoded(self.decoder, longest_side)
        return self._mixed(longest_side)

    def _decoded(self, decoder: TinyDecoder, longest_side: int) -> PillowImage.Image:
        if not self.is_free(decoder.bytes_for(self.latent)):
            return self._mixed(longest_side)
        try:
            pixels = decoder(self.latent)
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise
            # The network needs the memory more.
            return self._mixed(longest_side)
        picture = as_picture(pixels)
        picture.thumbnail((longest_side, longest_side), PillowImage.Resampling.BICUBIC)
        return picture

    def _mixed(self, longest_side: int) -> PillowImage.Image:
        factors = torch.tensor(self.format.rgb).reshape(-1, 3)  # (C, 3)
        bias = torch.tensor(self.format.rgb_bias)
        latent = self.latent.float().cpu()
        latent = latent if latent.dim() == 3 else latent[:, 0]  # the first frame
        if (fold := self.format.rgb_fold) > 1:
            latent = torch.nn.functional.pixel_shuffle(latent, fold)
        rgb = latent.movedim(0, -1)[..., : len(factors)] @ factors + bias
        picture = as_picture((rgb + 1) / 2)
        scale = min(self.format.pixels / fold, longest_side / max(picture.size))
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, PillowImage.Resampling.BICUBIC)


def as_picture(pixels: Tensor) -> PillowImage.Image:
    """(H, W, 3) in [0, 1]."""
    return PillowImage.fromarray((pixels * 255).nan_to_num(0).clamp(0, 255).to(torch.uint8).numpy())


class Previews:
    """Shows what is being sampled; keeps the tiny decoder that was used last."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._decoder: TinyDecoder | None = None

    def of(
        self,
        latent: LatentFormat,
        folders: ModelFolders,
        memory: Memory,
        warn: Callable[[str], None],
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> Callable[[Step], LatentPreview | None]:
        """What shows the steps of one run; it shows None for families that it knows no colours of.

        metadata: of the model's file, which may state colours of its own. These, and a decoder file, are done
        without and warned of where they cannot be used."""
        try:
            latent = with_own_colours(latent, metadata)
        except ModelFileError as error:
            warn(f"previews have the colours of the model's family: {error}")
        path = folders.approximation(f"{latent.tiny}_decoder") if latent.tiny else None
        try:
            decoder = None if path is None else self.decoder(path, latent.channels, memory)
        except ModelFileError as error:
            warn(f"previews are done without a decoder: {error}")
            decoder = None
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise
            warn("previews are done without a decoder: there is no memory for it")
            decoder = None

        def show(step: Step) -> LatentPreview | None:
            if decoder is None and not latent.rgb:
                return None
            return LatentPreview(step.denoised[0].detach(), latent, decoder, memory.is_free)

        return show

    def decoder(self, path: Path, channels: int, memory: Memory) -> TinyDecoder:
        """The tiny decoder of a file, for latents of so many channels. Raises ModelFileError."""
        key = (FileIdentity.of(path), channels, memory.dtype, memory.device)
        if self._decoder is None or key != self._key:
            self._decoder = TinyDecoder(path, channels, memory.dtype, memory.device)
            self._key = key
            memory.admit(self._decoder)
        return self._decoder
