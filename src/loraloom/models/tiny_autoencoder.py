"""Tiny autoencoders (TAESD and its relatives): two small convolutional networks, in a file each.

Original names are places in a sequence (https://github.com/madebyollin/taesd): "0.weight" is a convolution,
"3.conv.2.weight" part of a block. The encoder begins with a convolution; the decoder with a clamp, so that
its first convolution is "1". Native names put "encoder." or "decoder." in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from loraloom.errors import ModelFileError
from loraloom.models.autoencoder import AutoencoderKind, autoencoder_kinds, halvings, number
from loraloom.models.known_model import Blueprint, Config, Module, from_shapes
from loraloom.models.library_class import library_class
from loraloom.models.names import Names, Placement, Shapes

if TYPE_CHECKING:
    from torch import Tensor, nn

LATENTS: Mapping[str, tuple[float, float]] = {
    "taesd": (0.18215, 0.0),
    "taesdxl": (0.13025, 0.0),
    "taesd3": (1.5305, 0.0609),
    "taef1": (0.3611, 0.1159),
}
"""Name → scale and shift of the latents that it was made for: tiny latent = (latent - shift) · scale."""


def autoencoder_title(kind: str) -> str:
    """What a kind of autoencoder is called in messages, tiny ones included."""
    return (tiny_kind(kind) if kind in LATENTS else autoencoder_kinds()[kind]).title


def _config(shapes: Shapes) -> Config:
    encoder, decoder = _blocks(shapes, "encoder."), _blocks(shapes, "decoder.")
    if len(encoder) != len(decoder):
        raise ModelFileError(f"the encoder has {len(encoder)} levels and the decoder {len(decoder)}")
    widths = (shapes["encoder.0.weight"][0],) * len(encoder)
    return {
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "num_encoder_blocks": encoder,
        "num_decoder_blocks": decoder,
        "latent_channels": shapes["decoder.1.weight"][1],
    }


@dataclass(frozen=True, slots=True)
class _TinyNames:
    def of_native(self, shapes: Shapes) -> Names:
        return Names({place.native: name for name, place in _placements(shapes)})

    def of_module(self, shapes: Shapes) -> Names | None:
        return None


@cache
def tiny_kind(name: str) -> AutoencoderKind:
    """The kind of a tiny autoencoder ("taesd", …)."""
    scale, shift = LATENTS[name]

    def decode(module: Any, latent: Tensor) -> Tensor:
        return module.decode((latent - shift) * scale, return_dict=False)[0]

    def encode(module: Any, pixels: Tensor) -> Tensor:
        return module.encode(pixels, return_dict=False)[0].float() / scale + shift

    return AutoencoderKind(
        name=name,
        title=f"tiny autoencoder ({name})",
        marks=("encoder.0.weight", "decoder.1.weight"),
        module=Module("diffusers.models.autoencoders.autoencoder_tiny:AutoencoderTiny", _config),
        names=_TinyNames(),
        latent_channels=number("latent_channels"),
        pixels=halvings("encoder_block_out_channels"),
        width=lambda config: cast("tuple[int, ...]", config["encoder_block_out_channels"])[0],
        decode=decode,
        encode=encode,
    )


@from_shapes("the decoder of a tiny autoencoder")
def tiny_decoder_blueprint(shapes: Shapes) -> Blueprint:
    """The decoder alone, from a file of its own."""
    blocks = _blocks(shapes, "decoder.")
    width, latent = shapes["decoder.1.weight"][:2]

    def build() -> nn.Module:
        decoder = library_class("diffusers.models.autoencoders.vae:DecoderTiny")
        return decoder(latent, 3, blocks, (width,) * len(blocks), 2, "relu", "nearest")

    placements = {name.removeprefix("decoder."): place for name, place in _placements(shapes)}
    config = {"latent_channels": latent, "width": width, "pixels": 2 ** (len(blocks) - 1)}
    return Blueprint(config, build, placements)


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
