"""Pictures → latents of their bucket, each encoded once and kept on disk under its content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from PIL import Image, ImageOps
from torch import Tensor

from loraloom.models.autoencoder_network import AutoencoderNetwork
from loraloom.pictures import in_8_bits, opened
from loraloom.training.buckets import Size
from loraloom.training.dataset import Example
from loraloom.training.storage import read_tensors, write_tensors


def fitted(path: Path, size: Size, flip: bool) -> Tensor:
    """(1, H, W, 3) in [0, 1]: the picture upright, on white, covering its bucket, cut in the middle.

    InputError for a file that is cut off or damaged."""
    with opened(path) as file:
        picture = in_8_bits(ImageOps.exif_transpose(file)).convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    whole = ImageOps.fit(canvas.convert("RGB"), size, Image.Resampling.LANCZOS)
    if flip:
        whole = ImageOps.mirror(whole)
    return torch.from_numpy(np.asarray(whole, np.float32) / 255.0)[None]


READING = 2
"""Counts the ways in which pictures have been read; latents of another way are not used."""


class LatentCache:
    """Latents (1, C, h, w) as the autoencoder writes them, by picture, bucket and flip.

    key: identifies the autoencoder; a cache of another is never read."""

    def __init__(self, autoencoder: AutoencoderNetwork, folder: Path, key: str) -> None:
        self._autoencoder, self._folder, self._key = autoencoder, folder, key

    def __call__(self, example: Example, size: Size, flip: bool = False) -> Tensor:
        """One picture's latent."""
        name = blake3(f"{READING} {self._key} {example.digest} {size} {flip}".encode()).hexdigest()
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            latent = self._autoencoder.encode(fitted(example.path, size, flip))
            write_tensors(path, {"latent": latent.clone()})
        return read_tensors(path)["latent"]

    def fill(self, examples: Sequence[Example], sizes: Sequence[Size]) -> None:
        """Encode whatever is missing, so that the autoencoder can leave memory before training begins."""
        for example, size in zip(examples, sizes, strict=True):
            for flip in (False, True) if example.folder.flip else (False,):
                self(example, size, flip)
