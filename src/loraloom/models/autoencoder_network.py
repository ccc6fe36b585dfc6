"""The autoencoder as nodes use it: pictures (B, H, W, 3) in [0, 1] ↔ latents (B, C, h, w).

Latents are those of LATENT sockets, before the family's scale and shift. Pictures pass one at a time, so
that the memory needed does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


class AutoencoderNetwork:
    """A KL autoencoder ready to run.

    module: gives the resident module each time it is about to be used.
    """

    def __init__(
        self,
        module: Callable[[], nn.Module],
        config: Mapping[str, object],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._module = module
        self._config = config
        self._dtype = dtype
        self._device = device

    @property
    def latent_channels(self) -> int:
        return cast(int, self._config["latent_channels"])

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel, in both directions."""
        return 2 ** (len(cast("tuple[int, ...]", self._config["block_out_channels"])) - 1)

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) → (B, H, W, 3) float32 in [0, 1]."""
        module: Any = self._module()
        pictures: list[Tensor] = []
        for one in latent.split(1):
            out = module.decode(one.to(self._device, self._dtype), return_dict=False)[0]
            pictures.append(out.float().add_(1).div_(2).clamp_(0, 1).movedim(1, -1).cpu())
        return torch.cat(pictures)

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """(B, H, W, 3 or more) in [0, 1] → (B, C, h, w) float32: the mean of the posterior, nothing drawn.

        A picture whose sides are no multiples of `downscale` loses its edges evenly."""
        module: Any = self._module()
        pixels = self._cropped(image[..., :3]).movedim(-1, 1)
        latents: list[Tensor] = []
        for one in pixels.split(1):
            posterior = module.encode((one * 2 - 1).to(self._device, self._dtype), return_dict=False)[0]
            latents.append(posterior.mode().float().cpu())
        return torch.cat(latents)

    def _cropped(self, image: Tensor) -> Tensor:
        for dimension in (1, 2):
            size = image.shape[dimension]
            kept = size // self.downscale * self.downscale
            image = image.narrow(dimension, size % self.downscale // 2, kept)
        return image
