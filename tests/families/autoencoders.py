"""Narrow autoencoders with the very weights that the figures were measured on."""

from __future__ import annotations

from pathlib import Path

from tests.narrow_models import Weights

SILU = 1 / 0.596


def convolution(
    made: Weights, name: str, inputs: int, outputs: int, kernel: int = 3, gain: float = 1.0
) -> None:
    """A convolution whose output is about as large as its input."""
    made.put(f"{name}.weight", (outputs, inputs, kernel, kernel), gain / (inputs * kernel * kernel) ** 0.5)
    made.put(f"{name}.bias", (outputs,), 0.02)


def _resnet(made: Weights, name: str, inputs: int, outputs: int) -> None:
    made.norm(f"{name}.norm1", inputs, bias=True)
    convolution(made, f"{name}.conv1", inputs, outputs, gain=SILU)
    made.norm(f"{name}.norm2", outputs, bias=True)
    convolution(made, f"{name}.conv2", outputs, outputs, gain=0.5 * SILU)
    if inputs != outputs:
        convolution(made, f"{name}.nin_shortcut", inputs, outputs, 1)


def _middle(made: Weights, name: str, width: int) -> None:
    _resnet(made, f"{name}.block_1", width, width)
    made.norm(f"{name}.attn_1.norm", width, bias=True)
    for part, gain in (("q", 1.2), ("k", 1.2), ("v", 1.0), ("proj_out", 0.5)):
        convolution(made, f"{name}.attn_1.{part}", width, width, 1, gain)
    _resnet(made, f"{name}.block_2", width, width)


def kl(tag: str, latent: int, width: int = 32, levels: tuple[int, ...] = (1, 2, 4, 4)) -> Weights:
    """The autoencoder of Stable Diffusion and Flux.1, under its original names."""
    made, now = Weights(tag), width
    convolution(made, "encoder.conv_in", 3, width, gain=1.5)
    for level, factor in enumerate(levels):
        for block in range(2):
            _resnet(made, f"encoder.down.{level}.block.{block}", now, width * factor)
            now = width * factor
        if level + 1 < len(levels):
            convolution(made, f"encoder.down.{level}.downsample.conv", now, now)
    _middle(made, "encoder.mid", now)
    made.norm("encoder.norm_out", now, bias=True)
    convolution(made, "encoder.conv_out", now, 2 * latent, gain=SILU * 1.5)
    convolution(made, "decoder.conv_in", latent, now)
    _middle(made, "decoder.mid", now)
    for level in reversed(range(len(levels))):
        for block in range(3):
            _resnet(made, f"decoder.up.{level}.block.{block}", now, width * levels[level])
            now = width * levels[level]
        if level:
            convolution(made, f"decoder.up.{level}.upsample.conv", now, now)
    made.norm("decoder.norm_out", now, bias=True)
    convolution(made, "decoder.conv_out", now, 3, gain=0.4 * SILU)
    return made


def write_ae(path: Path) -> Path:
    """Flux.1's."""
    return kl("fam.ae", 16).write(path)
