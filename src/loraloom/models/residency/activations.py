"""How much memory computing takes beside the weights, from shapes alone.

The factors are peaks of live tensors, measured on the CPU with fused attention (SD 1.5: 26 maps, SDXL: 16;
Flux.1: 15 sequences; the KL decoder: 6 maps, its encoder: 5), rounded up for what kernels take besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

from torch import Tensor

from loraloom.sampling.inputs import Inputs

UNET_MAPS = 32
"""Maps as large as the first level's that a UNet holds at once: skips, and the gated feed-forward layer."""

TRANSFORMER_SEQUENCES = 20
"""Sequences of hidden states that a block of a transformer holds at once."""

DECODER_MAPS, ENCODER_MAPS = 8, 7
"""Maps of the picture's size and the outermost level's width that an autoencoder holds at once."""

POSITION = 16 * 16
"""Pixels of the picture that a transformer sees as one position, whatever its latent's size."""


def step_bytes(
    config: Mapping[str, object], width: int, pixels: int, x: Tensor, inputs: Inputs, itemsize: int
) -> int:
    """Bytes that one evaluation of a diffusion network takes, all of its batch together.

    width: of a transformer's hidden states (see `hidden_width`); UNets say theirs in their config. pixels:
    sides of the square that a latent pixel stands for. itemsize: bytes of a number that it computes with."""
    channels = config.get("block_out_channels")
    if channels is not None:
        return UNET_MAPS * _cells(x) * cast("tuple[int, ...]", channels)[0] * itemsize
    cells = sum(_cells(latent) for latent in (x, *inputs.references))
    text = sum(tokens.values.shape[0] * tokens.values.shape[1] for tokens in inputs.tokens.values())
    positions = cells * min(pixels**2, POSITION) // POSITION + text
    return TRANSFORMER_SEQUENCES * positions * width * itemsize


def hidden_width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The width of a transformer's hidden states: the side that most of its matrices have."""
    sides = Counter(min(shape) for shape in shapes.values() if len(shape) == 2)
    return sides.most_common(1)[0][0] if sides else 0


def picture_bytes(width: int, pixels: int, itemsize: int, maps: int) -> int:
    """Bytes that an autoencoder takes for a picture of so many pixels. width: of its maps at the picture's
    own size. maps: DECODER_MAPS or ENCODER_MAPS."""
    return maps * pixels * width * itemsize


def _cells(latent: Tensor) -> int:
    """Pixels of a latent (B, C, …), of all its batch."""
    return latent.numel() // latent.shape[1]
