"""The autoencoder as nodes use it: pictures (B, H, W, 3 or 4) in [0, 1] ↔ latents (B, C, h, w).

Latents are those of LATENT sockets, before the family's scale and shift. Pictures pass one at a time, so
that the memory needed does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from loraloom.errors import InputError, ModelFileError, OutOfMemory
from loraloom.models.autoencoder import AutoencoderKind
from loraloom.models.residency.activations import (
    DECODER_MAPS,
    ENCODER_MAPS,
    TINY_DECODER_MAPS,
    picture_bytes,
)
from loraloom.models.residency.resident import Resident
from loraloom.models.tiles import in_tiles
from loraloom.models.tiny_autoencoder import tiny_decoder_blueprint
from loraloom.weights.capacity import is_allocation_failure, until_it_fits
from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile

TILES = (512, 256, 128)
"""Sides of tiles in pixels, from the size that costs least time."""


class AutoencoderNetwork:
    """An autoencoder ready to run.

    module: gives the resident module each time it is about to be used. has_room: whether so many bytes can be
    had for computing. give_way: after an allocation failed, whether there is more to be had now. say_tiles:
    hears the side of tiles that memory asks for.
    """

    def __init__(
        self,
        kind: AutoencoderKind,
        module: Callable[[], nn.Module],
        config: Mapping[str, object],
        dtype: torch.dtype,
        device: torch.device,
        has_room: Callable[[int], bool] = lambda needed: True,
        give_way: Callable[[], bool] = lambda: False,
        say_tiles: Callable[[int], None] = lambda tile: None,
    ) -> None:
        self._kind = kind
        self._module = module
        self._config = config
        self._dtype = dtype
        self._device = device
        self._has_room = has_room
        self._give_way = give_way
        self._say_tiles = say_tiles

    @property
    def latent_channels(self) -> int:
        return self._kind.latent_channels(self._config)

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel, in both directions."""
        return self._kind.pixels(self._config)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) → (B, H, W, 3) float32 in [0, 1]; in tiles where the memory does not suffice."""
        pixels = latent.shape[-2] * latent.shape[-1] * self.downscale**2
        return self._as_memory_allows(
            lambda: self._pictures(latent, self._decode),
            lambda tile: self.decode_tiled(latent, tile, tile // 8),
            pixels,
            DECODER_MAPS,
        )

    def encode(self, image: Tensor) -> Tensor:
        """(B, H, W, 3 or more) in [0, 1] → (B, C, h, w) float32: the mean of the posterior, nothing drawn.

        A picture whose sides are no multiples of `downscale` loses its edges evenly."""
        return self._as_memory_allows(
            lambda: self._latents(image, self._encode),
            lambda tile: self.encode_tiled(image, tile, tile // 8),
            image.shape[1] * image.shape[2],
            ENCODER_MAPS,
        )

    def decode_tiled(self, latent: Tensor, tile: int = 512, overlap: int = 64) -> Tensor:
        """As `decode`, in tiles of about tile × tile pixels: the mean of three tilings, one of wide and one
        of tall tiles, whose seams lie apart (as ComfyUI tiles)."""
        size, lap = tile // self.downscale, overlap // self.downscale
        tilings = ((size * 2, size // 2), (size // 2, size * 2), (size, size))
        return self._pictures(
            latent, lambda one: _mean_of_tilings(self._decode, one, tilings, lap, self.downscale)
        )

    def encode_tiled(self, image: Tensor, tile: int = 512, overlap: int = 64) -> Tensor:
        """As `encode`, in tiles as `decode_tiled` makes them."""
        tilings = ((tile, tile), (tile // 2, tile * 2), (tile * 2, tile // 2))
        return self._latents(
            image, lambda one: _mean_of_tilings(self._encode, one, tilings, overlap, 1 / self.downscale)
        )

    def _as_memory_allows(
        self, whole: Callable[[], Tensor], tiled: Callable[[int], Tensor], pixels: int, maps: int
    ) -> Tensor:
        """The picture at once, or in the largest tiles for which there is memory."""
        self._module()  # the weights come first: what is free beside them counts
        for tile in (0, *TILES):
            smallest = tile == TILES[-1]
            needed = picture_bytes(
                self._kind.width(self._config), tile**2 or pixels, self._dtype.itemsize, maps
            )
            try:
                if not until_it_fits(partial(self._has_room, needed), self._give_way) and not smallest:
                    continue
                if tile:
                    self._say_tiles(tile)
                return until_it_fits(partial(tiled, tile) if tile else whole, self._give_way)
            except (RuntimeError, MemoryError) as error:
                if not is_allocation_failure(error):
                    raise
                if smallest:
                    raise OutOfMemory(
                        f"there is not enough memory on {self._device} for tiles of {tile} pixels"
                    ) from error
        raise AssertionError("the smallest tiles either succeed or raise")

    @torch.inference_mode()
    def _pictures(self, latent: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        if latent.shape[1] != self.latent_channels:
            raise InputError(
                f"the latent has {latent.shape[1]} channels and this VAE ({self._kind.title}) decodes "
                f"{self.latent_channels}: it is another model family's. Load the VAE of the model that made "
                "the latent"
            )
        decoded = (decode(one.to(self._device)) for one in latent.split(1))
        return torch.cat([one.add(1).div_(2).clamp_(0, 1).movedim(1, -1).cpu() for one in decoded])

    @torch.inference_mode()
    def _latents(self, image: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        pixels = self._cropped(with_channels(image, self._kind.channels)).movedim(-1, 1)
        return torch.cat([encode((one * 2 - 1).to(self._device)).cpu() for one in pixels.split(1)])

    def _decode(self, latent: Tensor) -> Tensor:
        """(1, C, h, w) → (1, channels, H, W) float32, about [-1, 1]."""
        return self._kind.decode(self._module(), latent.to(self._dtype)).float()

    def _encode(self, pixels: Tensor) -> Tensor:
        return self._kind.encode(self._module(), pixels.to(self._dtype)).float()

    def _cropped(self, image: Tensor) -> Tensor:
        if min(image.shape[1:3]) < self.downscale:
            raise InputError(
                f"a picture of {image.shape[2]}×{image.shape[1]} pixels is smaller than one cell of the"
                f" latents ({self.downscale}×{self.downscale}); enlarge it first"
            )
        for dimension in (1, 2):
            size = image.shape[dimension]
            kept = size // self.downscale * self.downscale
            image = image.narrow(dimension, size % self.downscale // 2, kept)
        return image


def with_channels(image: Tensor, channels: int) -> Tensor:
    """(B, H, W, C) cut to so many channels; without one, opacity is full."""
    if image.shape[-1] < channels == 4:
        image = torch.cat([image[..., :3], torch.ones_like(image[..., :1])], dim=-1)
    return image[..., :channels]


class TinyDecoder:
    """The decoder of a tiny autoencoder: network latents → pictures.

    Has its module to itself, so that it can run beside the network whose latents it shows. To the memory it
    is a guest that stays."""

    def __init__(self, path: Path, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        """Reads the file. Raises ModelFileError unless it is a decoder of latents with so many channels."""
        source = WeightSource.of_file(TensorFile(path), rename=lambda name: f"decoder.{name}")
        with source.naming():
            blueprint = tiny_decoder_blueprint(source.shapes)
            found = blueprint.config["latent_channels"]
            if found != channels:
                raise ModelFileError(f"it decodes latents of {found} channels, not of {channels}")
        self._resident = Resident(blueprint, source, dtype=dtype, device=device)
        self._width, self._pixels = (int(str(blueprint.config[name])) for name in ("width", "pixels"))
        self._dtype, self._device = dtype, device

    @property
    def held(self) -> int:
        """Bytes on the device."""
        return 0 if self._device.type == "cpu" else self._resident.nbytes

    def put_away(self) -> bool:
        """Nothing leaves: others may be looking at a picture just now."""
        return False

    def bytes_for(self, latent: Tensor) -> int:
        """What decoding a latent (C, h, w) takes."""
        pixels = latent.shape[-2] * latent.shape[-1] * self._pixels**2
        return picture_bytes(self._width, pixels, self._dtype.itemsize, TINY_DECODER_MAPS)

    @torch.inference_mode()
    def __call__(self, latent: Tensor) -> Tensor:
        """(C, h, w) as the network sees it → (H, W, 3) in [0, 1], on the CPU."""
        decoded: Tensor = self._resident.module(latent[None].to(self._device, self._dtype))[0]
        return decoded.float().add(1).div(2).clamp(0, 1).movedim(0, -1).cpu()

    def pictures(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) → (B, H, W, 3), one after the other."""
        return torch.stack([self(one) for one in latents])


def _mean_of_tilings(
    function: Callable[[Tensor], Tensor],
    one: Tensor,
    tilings: tuple[tuple[int, int], ...],
    overlap: int,
    scale: float,
) -> Tensor:
    results = [in_tiles(function, one, tile, overlap, scale) for tile in tilings]
    return torch.stack(results).mean(0)
