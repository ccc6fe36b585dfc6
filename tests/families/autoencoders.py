"""Narrow autoencoders with the very weights that the figures were measured on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from tests.narrow_models import Weights, normals

SILU = 1 / 0.596


def convolution(
    made: Weights, name: str, inputs: int, outputs: int, kernel: int = 3, gain: float = 1.0
) -> None:
    """A convolution whose output is about as large as its input."""
    _convolution(made, name, inputs, outputs, (kernel, kernel), gain)


def _convolution(
    made: Weights, name: str, inputs: int, outputs: int, kernel: tuple[int, ...], gain: float = 1.0
) -> None:
    made.put(f"{name}.weight", (outputs, inputs, *kernel), gain / math.sqrt(inputs * math.prod(kernel)))
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


def kl(
    tag: str, latent: int, width: int = 32, levels: tuple[int, ...] = (1, 2, 4, 4), decoder: int = 0
) -> Weights:
    """The autoencoder of Stable Diffusion and Flux.1, under its original names. decoder: its width."""
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
    width = decoder or width
    now = width * levels[-1]
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


def write_flux2_vae(path: Path) -> Path:
    """Flux.2's, with a decoder of another width and the statistics of its latents."""
    made = kl("fam.flux2_vae", 32, decoder=64)
    convolution(made, "quant_conv", 64, 64, 1)
    convolution(made, "post_quant_conv", 32, 32, 1)
    made.put("bn.running_mean", (128,), 0.1)
    variance = 1.5 + 0.3 * np.abs(normals(made.tag, "bn.running_var", (128,)))
    return made.write(path, {"bn.running_var": torch.from_numpy(variance.astype(np.float32))})


def _gamma(made: Weights, name: str, width: int, dimensions: int = 3) -> None:
    made.put(f"{name}.gamma", (width, *[1] * dimensions), 0.1, 1.0)


def _residual(made: Weights, name: str, inputs: int, outputs: int, kernel: tuple[int, ...]) -> None:
    _gamma(made, f"{name}.residual.0", inputs)
    _convolution(made, f"{name}.residual.2", inputs, outputs, kernel, SILU)
    _gamma(made, f"{name}.residual.3", outputs)
    _convolution(made, f"{name}.residual.6", outputs, outputs, kernel, 0.5 * SILU)
    if inputs != outputs:
        _convolution(made, f"{name}.shortcut", inputs, outputs, (1, 1, 1))


def _wan_middle(made: Weights, name: str, width: int, kernel: tuple[int, ...]) -> None:
    _residual(made, f"{name}.0", width, width, kernel)
    _gamma(made, f"{name}.1.norm", width, 2)
    _convolution(made, f"{name}.1.to_qkv", width, 3 * width, (1, 1))
    _convolution(made, f"{name}.1.proj", width, width, (1, 1), 0.5)
    _residual(made, f"{name}.2", width, width, kernel)


def write_wan(path: Path) -> Path:
    """Wan 2.1's and Qwen-Image's: blocks numbered through."""
    made, kernel, width, latent = Weights("fam.qwen_vae"), (3, 3, 3), 8, 16
    levels, in_time = (1, 2, 4, 4), (False, True, True)
    _convolution(made, "encoder.conv1", 3, width, kernel, 1.5)
    now, block = width, 0
    for level, factor in enumerate(levels):
        for _ in range(2):
            _residual(made, f"encoder.downsamples.{block}", now, width * factor, kernel)
            now, block = width * factor, block + 1
        if level + 1 < len(levels):
            _convolution(made, f"encoder.downsamples.{block}.resample.1", now, now, (3, 3))
            if in_time[level]:
                _convolution(made, f"encoder.downsamples.{block}.time_conv", now, now, (3, 1, 1))
            block += 1
    _wan_middle(made, "encoder.middle", now, kernel)
    _gamma(made, "encoder.head.0", now)
    _convolution(made, "encoder.head.2", now, 2 * latent, kernel, SILU * 1.5)
    _convolution(made, "conv1", 2 * latent, 2 * latent, (1, 1, 1))
    _convolution(made, "conv2", latent, latent, (1, 1, 1), 0.5)
    _convolution(made, "decoder.conv1", latent, now, kernel)
    _wan_middle(made, "decoder.middle", now, kernel)
    block = 0
    for level, factor in enumerate(reversed(levels)):
        for _ in range(3):
            _residual(made, f"decoder.upsamples.{block}", now, width * factor, kernel)
            now, block = width * factor, block + 1
        if level + 1 < len(levels):
            _convolution(made, f"decoder.upsamples.{block}.resample.1", now, now // 2, (3, 3))
            if in_time[-1 - level]:
                _convolution(made, f"decoder.upsamples.{block}.time_conv", now, 2 * now, (3, 1, 1))
            now, block = now // 2, block + 1
    _gamma(made, "decoder.head.0", now)
    _convolution(made, "decoder.head.2", now, 3, kernel, 0.4 * SILU)
    return made.write(path)


def write_qwen_image21(path: Path) -> Path:
    """Qwen-Image 2.1's: blocks within levels, kernels of one frame, four channels."""
    made, kernel, latent, levels = Weights("fam.qwen21_vae"), (1, 3, 3), 64, (1, 2, 4, 8, 8)
    in_time = (False, True, True, True)
    now = 8
    _convolution(made, "encoder.conv1", 4, now, kernel, 1.5)
    for level, factor in enumerate(levels):
        name = f"encoder.downsamples.{level}.downsamples"
        for block in range(2):
            _residual(made, f"{name}.{block}", now, 8 * factor, kernel)
            now = 8 * factor
        if level + 1 < len(levels):
            _convolution(made, f"{name}.2.resample.1", now, now, (3, 3))
            if in_time[level]:
                _convolution(made, f"{name}.2.time_conv", now, now, (1, 1, 1))
    _wan_middle(made, "encoder.middle", now, kernel)
    _gamma(made, "encoder.head.0", now)
    _convolution(made, "encoder.head.2", now, 2 * latent, kernel, SILU * 3)
    _convolution(made, "conv1", 2 * latent, 2 * latent, (1, 1, 1))
    _convolution(made, "conv2", latent, latent, (1, 1, 1), 0.3)
    now = 12 * levels[-1]
    _convolution(made, "decoder.conv1", latent, now, kernel)
    _wan_middle(made, "decoder.middle", now, kernel)
    for level, factor in enumerate(reversed(levels)):
        name = f"decoder.upsamples.{level}.upsamples"
        for block in range(3):
            _residual(made, f"{name}.{block}", now, 12 * factor, kernel)
            now = 12 * factor
        if level + 1 < len(levels):
            _convolution(made, f"{name}.3.resample.1", now, now, (3, 3))
            if in_time[-1 - level]:
                _convolution(made, f"{name}.3.time_conv", now, 2 * now, (1, 1, 1))
    _gamma(made, "decoder.head.0", now)
    _convolution(made, "decoder.head.2", now, 4, kernel, 0.4 * SILU)
    return made.write(path)


def write_sd3(path: Path) -> Path:
    """Stable Diffusion 3's."""
    return kl("fam.sd3_vae", 16).write(path)
