"""FreeU (Si et al. 2023, https://arxiv.org/abs/2309.11497): rebalance what a UNet's decoder is given.

Where the decoder joins its own features with those that skip the middle of the network, half of the former
are amplified and the low frequencies of the latter are damped.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class FreeU:
    """b1 and s1 act where features are four times as wide as the first block's, b2 and s2 where twice.

    adaptive: amplify each pixel by how strong its features are (the paper's final form), not all alike.
    """

    b1: float
    b2: float
    s1: float
    s2: float
    adaptive: bool = False

    @contextmanager
    def on(self, module: nn.Module) -> Generator[None]:
        """Act on a diffusers UNet for the time of the context."""
        handles = [
            resnet.register_forward_pre_hook(_Join(self, width, amplify, damp))
            for resnet, width, amplify, damp in self._joins(module)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _joins(self, unet: Any) -> Generator[tuple[nn.Module, int, float, float]]:
        """Each decoder block that acts: its width before the skip, and its two factors."""
        first = int(unet.config.block_out_channels[0])
        factors = {4 * first: (self.b1, self.s1), 2 * first: (self.b2, self.s2)}
        width = int(unet.mid_block.resnets[-1].out_channels)
        for block in unet.up_blocks:
            for resnet in block.resnets:
                if width in factors:
                    yield resnet, width, *factors[width]
                width = int(resnet.out_channels)


@dataclass(frozen=True, slots=True)
class _Join:
    settings: FreeU
    width: int
    amplify: float
    damp: float

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        joined, *rest = inputs
        own, skipped = joined[:, : self.width], joined[:, self.width :]
        factor: Tensor | float = self.amplify
        if self.settings.adaptive:
            factor = (self.amplify - 1) * _relative_strength(own) + 1
        half = self.width // 2
        damped = damp_low_frequencies(skipped, self.damp)
        return torch.cat([own[:, :half] * factor, own[:, half:], damped], dim=1), *rest


def _relative_strength(features: Tensor) -> Tensor:
    """(B, 1, H, W) the mean over channels, from 0 for a picture's weakest pixel to 1 for its strongest."""
    strength = features.mean(dim=1, keepdim=True)
    low, high = strength.amin(dim=(2, 3), keepdim=True), strength.amax(dim=(2, 3), keepdim=True)
    return (strength - low) / (high - low)


def damp_low_frequencies(features: Tensor, scale: float) -> Tensor:
    """Scale the four lowest spatial frequencies (0 and -1 in both directions) of (B, C, H, W)."""
    spectrum = torch.fft.fft2(features.float())
    for row in (0, -1):
        for column in (0, -1):
            spectrum[..., row, column] *= scale
    return torch.fft.ifft2(spectrum).real.to(features.dtype)
