"""Qwen-Image 2.1's autoencoder (2026): pictures with an opacity, 16 pixels to a latent pixel.

The layout of Wan 2.2's with kernels of one frame, which diffusers' class has as plain convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraloom.models.autoencoder import AutoencoderKind, frame_decode, frame_encode, halvings, number
from loraloom.models.known_model import Config, Module, count_blocks
from loraloom.models.names import Names, Row, Shapes
from loraloom.models.parts.wan_layout import ends, residual

DOWN, UP = "encoder.downsamples.{}.downsamples.", "decoder.upsamples.{}.upsamples."


def _rows() -> Iterator[tuple[str, Row]]:
    yield from (("conv1", "quant_conv"), ("conv2", "post_quant_conv"))
    for half in ("encoder", "decoder"):
        yield from ends(half)
    for native, module, sampler in (
        (DOWN, "encoder.down_blocks.{}", "downsampler"),
        (UP, "decoder.up_blocks.{}", "upsampler"),
    ):
        for part in ("resample.1", "time_conv"):
            # where a level ends, its sampler follows the residual blocks under the next number
            yield f"{native}{2 if native == DOWN else 3}.{part}", f"{module}.{sampler}.{part}"
        yield from residual(native + "{}", module + ".resnets.{}")


def config(shapes: Shapes) -> Config:
    levels = count_blocks(shapes, DOWN + "0.residual.2.weight")
    first = shapes["encoder.conv1.weight"][0]
    blocks = count_blocks(shapes, "encoder.downsamples.0.downsamples.{}.residual.2.weight")
    outer = shapes[f"decoder.upsamples.{levels - 1}.upsamples.0.residual.6.weight"][0]
    last = [f"{DOWN.format(level)}{blocks - 1}.residual.6.weight" for level in range(levels)]
    samplers = [f"{DOWN.format(level)}{blocks}.time_conv.weight" for level in range(levels - 1)]
    return {
        "base_dim": first,
        "decoder_base_dim": outer,
        "z_dim": shapes["conv2.weight"][0],
        "dim_mult": [shapes[name][0] // first for name in last],
        "num_res_blocks": blocks,
        "attn_scales": [],
        "temperal_downsample": [name in shapes for name in samplers],
        "in_channels": shapes["encoder.conv1.weight"][1],
        "out_channels": shapes["decoder.head.2.weight"][0],
    }


AUTOENCODER = AutoencoderKind(
    name="qwen_image21",
    title="Qwen-Image 2.1 autoencoder",
    marks=(
        "encoder.downsamples.0.downsamples.0.residual.2.weight",
        "decoder.upsamples.0.upsamples.0.residual.2.weight",
        "conv2.weight",
    ),
    fits=lambda shapes: shapes["encoder.conv1.weight"][1] == 4,
    module=Module(
        "diffusers.models.autoencoders.autoencoder_kl_qwenimage21:AutoencoderKLQwenImage21", config
    ),
    names=Names(dict(_rows())),
    latent_channels=number("z_dim"),
    pixels=halvings("dim_mult"),
    width=number("base_dim"),
    channels=4,
    decode=frame_decode,
    encode=frame_encode,
)
