"""Nodes that change latents: their size, their place, their values. Sizes are given in pixels."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from loraloom.engine.node import Choice, Number, node
from loraloom.errors import InputError
from loraloom.nodes.composition import paste, require_one_kind
from loraloom.nodes.sockets import Latent, LatentValue, Mask
from loraloom.resampling import CROPS, LATENT_METHODS, as_batch, repeat_to, resize

PIXELS_PER_LATENT = 8
SMALLEST = 64
ROWS, COLUMNS = 2, 3
"""The axes that ComfyUI turns, mirrors, crops and composes. Of latents with frames, it takes those for rows
and the rows for columns."""

Pixels = Annotated[int, Number(min=0, max=16384, step=8)]
Method = Annotated[str, Choice(LATENT_METHODS)]
Rotation = Annotated[str, Choice(("none", "90 degrees", "180 degrees", "270 degrees"))]
Flip = Annotated[str, Choice(("x-axis: vertically", "y-axis: horizontally"))]
EXTRA = "comfy_extras.nodes_latent"


@node("LatentUpscale", category="latent", display_name="Upscale Latent")
def upscale_latent(
    *,
    samples: Latent,
    upscale_method: Method,
    width: Pixels = 512,
    height: Pixels = 512,
    crop: Annotated[str, Choice(CROPS)],
) -> Latent:
    """Resize latents; a width or height of 0 keeps the proportions."""
    if width == 0 and height == 0:
        return samples
    old_height, old_width = samples["samples"].shape[-2:]
    if width == 0:
        width = round(old_width * max(SMALLEST, height) / old_height)
    elif height == 0:
        height = round(old_height * max(SMALLEST, width) / old_width)
    width, height = (max(SMALLEST, side) // PIXELS_PER_LATENT for side in (width, height))
    return _with(samples, resize(samples["samples"], width, height, upscale_method, crop))


@node("LatentUpscaleBy", category="latent", display_name="Upscale Latent By")
def upscale_latent_by(
    samples: Latent,
    upscale_method: Method,
    scale_by: Annotated[float, Number(min=0.01, max=8.0, step=0.01)] = 1.5,
) -> Latent:
    """Resize latents by a factor."""
    height, width = (round(side * scale_by) for side in samples["samples"].shape[-2:])
    return _with(samples, resize(samples["samples"], width, height, upscale_method))


@node("LatentRotate", category="latent/transform", display_name="Rotate Latent")
def rotate_latent(samples: Latent, rotation: Rotation) -> Latent:
    """Turn latents clockwise."""
    return _with(samples, samples["samples"].rot90(quarter_turns(rotation), (COLUMNS, ROWS)))


@node("LatentFlip", category="latent/transform", display_name="Flip Latent")
def flip_latent(samples: Latent, flip_method: Flip) -> Latent:
    """Mirror latents."""
    return _with(samples, samples["samples"].flip(ROWS if flip_method.startswith("x") else COLUMNS))


@node("LatentCrop", category="latent/transform", display_name="Crop Latent")
def crop_latent(
    samples: Latent,
    width: Annotated[int, Number(min=64, max=16384, step=8)] = 512,
    height: Annotated[int, Number(min=64, max=16384, step=8)] = 512,
    x: Pixels = 0,
    y: Pixels = 0,
) -> Latent:
    """Cut a rectangle out of latents; its corner is moved so that at least 64 pixels remain."""
    whole = samples["samples"]
    least = SMALLEST // PIXELS_PER_LATENT
    left = max(0, min(x // PIXELS_PER_LATENT, whole.shape[COLUMNS] - least))
    top = max(0, min(y // PIXELS_PER_LATENT, whole.shape[ROWS] - least))
    bottom, right = top + height // PIXELS_PER_LATENT, left + width // PIXELS_PER_LATENT
    return _with(samples, whole[:, :, top:bottom, left:right])


@node("LatentComposite", category="latent", display_name="Latent Composite")
def composite_latents(
    samples_to: Latent, samples_from: Latent, x: Pixels = 0, y: Pixels = 0, feather: Pixels = 0
) -> Latent:
    """Lay one latent over another; `feather` blends the edges that are not at the picture's own edge."""
    x, y, feather = (value // PIXELS_PER_LATENT for value in (x, y, feather))
    below, above = samples_to["samples"].clone(), samples_from["samples"]
    require_one_kind(below, above)
    rows, columns = below.shape[ROWS], below.shape[COLUMNS]
    above = repeat_to(above, len(below))[:, :, : max(0, rows - y), : max(0, columns - x)]
    height, width = above.shape[ROWS], above.shape[COLUMNS]
    if above.shape[COLUMNS + 1 :] != below.shape[COLUMNS + 1 :]:
        raise InputError(
            f"latents with frames, {_shape(below)} and {_shape(samples_from['samples'])}, can be laid over "
            "each other where their last sides are equal; LatentCutToBatch makes a batch of frames"
        )
    ramp = (torch.arange(feather) + 1) / max(feather, 1)
    down, across = torch.ones(height), torch.ones(width)
    for line, length, near, far in (
        (down, height, y != 0, y + height < rows),
        (across, width, x != 0, x + width < columns),
    ):
        kept = ramp[:length]
        if near:
            line[: len(kept)] *= kept
        if far:
            line[length - len(kept) :] *= kept.flip(0)
    mask = (down[:, None] * across).to(below).reshape(height, width, *[1] * (below.dim() - 4))
    place = (slice(None), slice(None), slice(y, y + height), slice(x, x + width))
    below[place] = above * mask + below[place] * (1 - mask)
    return _with(samples_to, below)


@node(
    "LatentCompositeMasked",
    category="latent",
    display_name="LatentCompositeMasked",
    python_module="comfy_extras.nodes_mask",
)
def composite_latents_masked(
    destination: Latent,
    source: Latent,
    x: Pixels = 0,
    y: Pixels = 0,
    resize_source: bool = False,
    mask: Mask | None = None,
) -> Latent:
    """Lay one latent over another where the mask says."""
    require_one_kind(destination["samples"], source["samples"])
    corner = (x // PIXELS_PER_LATENT, y // PIXELS_PER_LATENT)
    return _with(destination, paste(destination["samples"], source["samples"], corner, mask, resize_source))


@node("LatentBlend", category="_for_testing", display_name="Latent Blend")
def blend_latents(
    samples1: Latent, samples2: Latent, blend_factor: Annotated[float, Number(min=0, max=1, step=0.01)] = 0.5
) -> Latent:
    """Mix two latents; the factor is the share of the first."""
    first, second = samples1["samples"], samples2["samples"]
    require_one_kind(first, second)
    if first.shape != second.shape:
        second = resize(second, first.shape[-1], first.shape[-2], "bicubic", "center")
        second = repeat_to(second, len(first))
    return _with(samples1, first * blend_factor + second * (1 - blend_factor))


@node("LatentAdd", category="latent/advanced", v3=True, python_module=EXTRA)
def add_latents(samples1: Latent, samples2: Latent) -> Latent:
    """Add two latents."""
    return _with(samples1, samples1["samples"] + _alike(samples2, samples1))


@node("LatentSubtract", category="latent/advanced", v3=True, python_module=EXTRA)
def subtract_latents(samples1: Latent, samples2: Latent) -> Latent:
    """Take the second latent from the first."""
    return _with(samples1, samples1["samples"] - _alike(samples2, samples1))


@node("LatentMultiply", category="latent/advanced", v3=True, python_module=EXTRA)
def multiply_latent(
    samples: Latent, multiplier: Annotated[float, Number(min=-10.0, max=10.0, step=0.01)] = 1.0
) -> Latent:
    """Multiply a latent with a number."""
    return _with(samples, samples["samples"] * multiplier)


@node("LatentInterpolate", category="latent/advanced", v3=True, python_module=EXTRA)
def interpolate_latents(
    samples1: Latent,
    samples2: Latent,
    ratio: Annotated[float, Number(min=0.0, max=1.0, step=0.01)] = 1.0,
) -> Latent:
    """Mix the directions and the lengths of two latents' vectors; the ratio is the share of the first."""
    first = samples1["samples"]
    second = _alike(samples2, samples1)
    lengths = [torch.linalg.vector_norm(t, dim=1, keepdim=True) for t in (first, second)]
    units = [torch.nan_to_num(t / n) for t, n in zip((first, second), lengths, strict=True)]
    mixed = units[0] * ratio + units[1] * (1.0 - ratio)
    mixed = torch.nan_to_num(mixed / torch.linalg.vector_norm(mixed, dim=1, keepdim=True))
    return _with(samples1, mixed * (lengths[0] * ratio + lengths[1] * (1.0 - ratio)))


@node("LatentConcat", category="latent/advanced", v3=True, python_module=EXTRA)
def concatenate_latents(
    samples1: Latent, samples2: Latent, dim: Annotated[str, Choice(("x", "-x", "y", "-y", "t", "-t"))]
) -> Latent:
    """Put two latents side by side; with a minus, the second comes first."""
    first, second = samples1["samples"], samples2["samples"]
    dimension = first.dim() + _DIMENSIONS[dim[-1]]
    rest = [(*latent.shape[1:dimension], *latent.shape[dimension + 1 :]) for latent in (first, second)]
    if first.dim() != second.dim() or rest[0] != rest[1]:
        raise InputError(
            f"latents of the shapes {_shape(first)} and {_shape(second)} cannot be joined along {dim[-1]!r}: "
            "all other sides and the channels must be equal"
        )
    pair = [first, repeat_to(second, first.shape[0])]
    if dim.startswith("-"):
        pair.reverse()
    return _with(samples1, torch.cat(pair, dim=dimension))


@node("LatentCut", category="latent/advanced", v3=True, python_module=EXTRA)
def cut_latent(
    samples: Latent,
    dim: Annotated[str, Choice(("x", "y", "t"))],
    index: Annotated[int, Number(min=-16384, max=16384, step=1)] = 0,
    amount: Annotated[int, Number(min=1, max=16384, step=1)] = 1,
) -> Latent:
    """Cut a strip out of a latent, in latent pixels; a negative index counts from the end."""
    whole = samples["samples"]
    dimension = _DIMENSIONS[dim]
    size = whole.shape[dimension]
    start = min(index, size - 1) if index >= 0 else max(index, -size) + size
    return _with(samples, whole.narrow(dimension, start, min(size - start, amount)))


@node("LatentCutToBatch", category="latent/advanced", v3=True, python_module=EXTRA)
def cut_latent_to_batch(
    samples: Latent,
    dim: Annotated[str, Choice(("t", "x", "y"))],
    slice_size: Annotated[int, Number(min=1, max=16384, step=1)] = 1,
) -> Latent:
    """Cut latents into slices of equal size and make a batch of them; what is left over is dropped."""
    whole = samples["samples"]
    dimension = whole.ndim + _DIMENSIONS[dim]
    if dimension < 2:
        return samples
    slices = whole.movedim(dimension, 1)
    size = min(slice_size, slices.shape[1])
    slices = slices[:, : slices.shape[1] // size * size]
    return _with(samples, slices.reshape(-1, size, *slices.shape[2:]).movedim(1, dimension))


@node("SetLatentNoiseMask", category="latent/inpaint", display_name="Set Latent Noise Mask")
def set_noise_mask(samples: Latent, mask: Mask) -> Latent:
    """Let a sampler change a latent only where the mask is white."""
    return {**samples, "noise_mask": as_batch(mask)}


_DIMENSIONS = {"x": -1, "y": -2, "t": -3}


def quarter_turns(rotation: str) -> int:
    return {"90": 1, "180": 2, "270": 3}.get(rotation.split()[0], 0)


def _with(latent: LatentValue, samples: Tensor) -> LatentValue:
    """A latent with other samples and everything else kept."""
    return {**latent, "samples": samples}


def _shape(samples: Tensor) -> str:
    return "×".join(map(str, samples.shape))


def _alike(latent: LatentValue, model: LatentValue) -> Tensor:
    """The samples of one latent in the size and number of another's."""
    samples, like = latent["samples"], model["samples"]
    require_one_kind(like, samples)
    if samples.shape[1:] != like.shape[1:]:
        samples = resize(samples, like.shape[-1], like.shape[-2], "bilinear", "center")
    return repeat_to(samples, like.shape[0])
