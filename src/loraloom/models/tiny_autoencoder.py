"""Tiny autoencoders (TAESD and its relatives): two small convolutional networks, in a file each.

Original names are places in a sequence (https://github.com/madebyollin/taesd): "0.weight" is a convolution,
"3.conv.2.weight" part of a block. The encoder begins with a convolution; the decoder with a clamp, so that
its first convolution is "1". Native names put "encoder." or "decoder." in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, Placement, Shapes, from_shapes

if TYPE_CHECKING:
    from torch import nn

LATENTS: Mapping[str, tuple[float, float]] = {
    "taesd": (0.18215, 0.0),
    "taesdxl": (0.13025, 0.0),
    "taesd3": (1.5305, 0.0609),
    "taef1": (0.3611, 0.1159),
}
"""Name → scale and shift of the latents that it was made for: tiny latent = (latent - shift) · scale."""


def is_tiny(shapes: Shapes) -> bool:
    """Whether native names are those of a tiny autoencoder, or of its decoder alone."""
    return "decoder.1.weight" in shapes


@from_shapes("a tiny autoencoder")
def tiny_blueprint(shapes: Shapes) -> Blueprint:
    """The diffusers module for these shapes; ModelFileError where they do not make one."""
    encoder, decoder = _blocks(shapes, "encoder."), _blocks(shapes, "decoder.")
    if len(encoder) != len(decoder):
        raise ModelFileError(f"the encoder has {len(encoder)} levels and the decoder {len(decoder)}")
    width = shapes["encoder.0.weight"][0]
    latent = shapes["decoder.1.weight"][1]
    widths = (width,) * len(encoder)

    def build() -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        return AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=encoder,
            num_decoder_blocks=decoder,
            latent_channels=latent,
        )

    config = {"latent_channels": latent, "block_out_channels": widths}
    return Blueprint(config, build, dict(_placements(shapes)))


@from_shapes("the decoder of a tiny autoencoder")
def tiny_decoder_blueprint(shapes: Shapes) -> Blueprint:
    """The decoder alone, from a file of its own."""
    blocks = _blocks(shapes, "decoder.")
    width, latent = shapes["decoder.1.weight"][:2]

    def build() -> nn.Module:
        from diffusers.models.autoencoders.vae import DecoderTiny

        return DecoderTiny(latent, 3, blocks, (width,) * len(blocks), 2, "relu", "nearest")

    placements = {name.removeprefix("decoder."): place for name, place in _placements(shapes)}
    return Blueprint({"latent_channels": latent}, build, placements)


def _blocks(shapes: Shapes, half: str) -> tuple[int, ...]:
    """How many blocks follow each convolution but the last."""
    places = {int(name[len(half) :].split(".")[0]) for name in shapes if name.startswith(half)}
    counts: list[int] = []
    for place in sorted(places):
        if f"{half}{place}.weight" in shapes:
            counts.append(0)
        else:
            counts[-1] += 1
    if len(counts) < 2 or counts[-1]:
        raise ModelFileError(f"the {half[:-1]} does not end in a convolution")
    return tuple(counts[:-1])


def _placements(shapes: Shapes) -> Iterator[tuple[str, Placement]]:
    blocks = {native.rpartition(".conv.")[0] for native in shapes if ".conv." in native}
    whole = [f"{block}.conv.{i}.{kind}" for block in blocks for i in (0, 2, 4) for kind in ("weight", "bias")]
    for native in dict.fromkeys([*shapes, *whole]):  # also what the file lacks, which is then named
        half, place, rest = native.split(".", 2)
        index = int(place) - (half == "decoder")  # diffusers clamps outside of the sequence
        yield f"{half}.layers.{index}.{rest}", Placement(native)
