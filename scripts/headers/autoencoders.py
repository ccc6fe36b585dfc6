"""Layouts of autoencoders under their original names."""

from __future__ import annotations

from headers.layouts import Shape, Shapes


def _conv(name: str, inputs: int, outputs: int, kernel: Shape = (3, 3)) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _kl_resnet(name: str, inputs: int, outputs: int) -> Shapes:
    found = _norm(f"{name}.norm1", inputs) | _conv(f"{name}.conv1", inputs, outputs)
    found |= _norm(f"{name}.norm2", outputs) | _conv(f"{name}.conv2", outputs, outputs)
    return found | (_conv(f"{name}.nin_shortcut", inputs, outputs, (1, 1)) if inputs != outputs else {})


def _kl_middle(name: str, width: int) -> Shapes:
    found = _kl_resnet(f"{name}.block_1", width, width) | _kl_resnet(f"{name}.block_2", width, width)
    found |= _norm(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        found |= _conv(f"{name}.attn_1.{part}", width, width, (1, 1))
    return found


def kl_autoencoder(latent: int, *, quant: tuple[str, str] | None = None, decoder: int = 128) -> Shapes:
    """Stable Diffusion's autoencoder under its original names. latent: channels. quant: what stands before
    quant_conv and post_quant_conv, where it has them. decoder: width of the decoder's outer level."""
    factors = (1, 2, 4, 4)
    found, now = _conv("encoder.conv_in", 3, 128), 128
    for level, factor in enumerate(factors):
        for block in range(2):
            found |= _kl_resnet(f"encoder.down.{level}.block.{block}", now, 128 * factor)
            now = 128 * factor
        if level < 3:
            found |= _conv(f"encoder.down.{level}.downsample.conv", now, now)
    found |= _kl_middle("encoder.mid", now) | _norm("encoder.norm_out", now)
    found |= _conv("encoder.conv_out", now, 2 * latent)
    now = decoder * factors[-1]
    found |= _conv("decoder.conv_in", latent, now) | _kl_middle("decoder.mid", now)
    for level in reversed(range(4)):
        for block in range(3):
            found |= _kl_resnet(f"decoder.up.{level}.block.{block}", now, decoder * factors[level])
            now = decoder * factors[level]
        if level:
            found |= _conv(f"decoder.up.{level}.upsample.conv", now, now)
    found |= _norm("decoder.norm_out", now) | _conv("decoder.conv_out", now, 3)
    if quant is not None:
        found |= _conv(f"{quant[0]}quant_conv", 2 * latent, 2 * latent, (1, 1))
        found |= _conv(f"{quant[1]}post_quant_conv", latent, latent, (1, 1))
    return found


def _wan_resnet(name: str, inputs: int, outputs: int, kernel: Shape) -> Shapes:
    found: Shapes = {
        f"{name}.residual.0.gamma": (inputs, 1, 1, 1),
        f"{name}.residual.3.gamma": (outputs, 1, 1, 1),
    }
    found |= _conv(f"{name}.residual.2", inputs, outputs, kernel)
    found |= _conv(f"{name}.residual.6", outputs, outputs, kernel)
    return found | (_conv(f"{name}.shortcut", inputs, outputs, (1, 1, 1)) if inputs != outputs else {})


def _wan_middle(name: str, width: int, kernel: Shape) -> Shapes:
    found = _wan_resnet(f"{name}.0", width, width, kernel) | _wan_resnet(f"{name}.2", width, width, kernel)
    found[f"{name}.1.norm.gamma"] = (width, 1, 1)
    return (
        found
        | _conv(f"{name}.1.to_qkv", width, 3 * width, (1, 1))
        | _conv(f"{name}.1.proj", width, width, (1, 1))
    )


def wan_autoencoder(
    latent: int,
    factors: tuple[int, ...],
    *,
    widths: tuple[int, int] = (96, 96),
    pixels: int = 3,
    frames: int = 3,
    nested: bool = False,
) -> Shapes:
    """Wan's autoencoder under its original names. widths: of the outer levels of encoder and decoder. frames:
    that a kernel spans. nested: with a list per level, and whole widths after an upsampling (as Wan 2.2)."""
    kernel, time, last = (frames, 3, 3), (frames, 1, 1), len(factors) - 1
    found = _conv("encoder.conv1", pixels, widths[0], kernel)
    now, count = widths[0], 0

    def place(side: str, level: int, block: int) -> str:
        return f"{side}.{level}.{side}.{block}" if nested else f"{side}.{count}"

    for level, factor in enumerate(factors):
        for block in range(2):
            name = "encoder." + place("downsamples", level, block)
            found |= _wan_resnet(name, now, widths[0] * factor, kernel)
            now, count = widths[0] * factor, count + 1
        if level < last:
            name = "encoder." + place("downsamples", level, 2)
            found |= _conv(f"{name}.resample.1", now, now)
            found |= _conv(f"{name}.time_conv", now, now, time) if level else {}
            count += 1
    found |= _wan_middle("encoder.middle", now, kernel) | {"encoder.head.0.gamma": (now, 1, 1, 1)}
    found |= _conv("encoder.head.2", now, 2 * latent, kernel)
    found |= _conv("conv1", 2 * latent, 2 * latent, (1, 1, 1)) | _conv("conv2", latent, latent, (1, 1, 1))
    now, count = widths[1] * factors[-1], 0
    found |= _conv("decoder.conv1", latent, now, kernel) | _wan_middle("decoder.middle", now, kernel)
    for level, factor in enumerate(reversed(factors)):
        for block in range(3):
            name = "decoder." + place("upsamples", level, block)
            found |= _wan_resnet(name, now, widths[1] * factor, kernel)
            now, count = widths[1] * factor, count + 1
        if level < last:
            name = "decoder." + place("upsamples", level, 3)
            found |= _conv(f"{name}.time_conv", now, 2 * now, time) if level < last - 1 else {}
            found |= _conv(f"{name}.resample.1", now, now if nested else now // 2)
            now, count = now if nested else now // 2, count + 1
    return found | {"decoder.head.0.gamma": (now, 1, 1, 1)} | _conv("decoder.head.2", now, pixels, kernel)
