"""Flux.2's autoencoder (Black Forest Labs, 2025): latents of 32 channels, folded 2×2 into 128 and brought to
mean 0 and variance 1 by statistics that the file holds. The decoder may be narrower than the encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from loraloom.models.autoencoder import AutoencoderKind, decode, encode, first_frame, halvings, number
from loraloom.models.known_model import Config, Module
from loraloom.models.names import Shapes
from loraloom.models.parts.kl_layout import KL_MARKS, KlNames, kl_config, widths

if TYPE_CHECKING:
    from torch import Tensor

FOLD = 2
"""Latent pixels, in both directions, that one folded pixel holds."""


def config(shapes: Shapes) -> Config:
    found = dict(kl_config(shapes))
    levels = len(cast("tuple[int, ...]", found["block_out_channels"]))
    return found | {"decoder_block_out_channels": widths(shapes, "decoder.up", levels)}


def without_counter(module: Any) -> None:
    """Some files lack the number of batches that the statistics were gathered over; nothing here reads it."""
    module.bn.register_buffer("num_batches_tracked", None)


def decode_folded(module: Any, latent: Tensor) -> Tensor:
    """(1, 128, h, w) → (1, 3, 16h, 16w)."""
    from torch.nn.functional import pixel_shuffle

    mean, deviation = _statistics(module, latent)
    return decode(module, pixel_shuffle(first_frame(latent) * deviation + mean, FOLD))


def encode_folded(module: Any, pixels: Tensor) -> Tensor:
    from torch.nn.functional import pixel_unshuffle

    latent = pixel_unshuffle(encode(module, pixels), FOLD)
    mean, deviation = _statistics(module, latent)
    return (latent - mean) / deviation


def _statistics(module: Any, latent: Tensor) -> tuple[Tensor, Tensor]:
    normal = module.bn
    mean = normal.running_mean.to(latent).view(1, -1, 1, 1)
    return mean, (normal.running_var.to(latent) + normal.eps).sqrt().view(1, -1, 1, 1)


AUTOENCODER = AutoencoderKind(
    name="flux2",
    title="Flux.2 autoencoder",
    marks=(*KL_MARKS, "bn.running_mean", "bn.running_var"),
    module=Module(
        "diffusers.models.autoencoders.autoencoder_kl_flux2:AutoencoderKLFlux2", config, without_counter
    ),
    names=KlNames(further=(("bn.running_mean", "bn.running_mean"), ("bn.running_var", "bn.running_var"))),
    latent_channels=lambda config: number("latent_channels")(config) * FOLD**2,
    pixels=lambda config: halvings("block_out_channels")(config) * FOLD,
    width=lambda config: cast("tuple[int, ...]", config["block_out_channels"])[0],
    decode=decode_folded,
    encode=encode_folded,
)
