"""ResizeImageMaskNode: many ways to say a size, for pictures and masks alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, cast

from torch import Tensor

from loraloom.engine.node import Choice, Socket, node
from loraloom.errors import InputError
from loraloom.resampling import IMAGE_METHODS, as_batch, resize

Size = tuple[float, float]
"""Width and height."""


def _dimensions(size: Size, said: Mapping[str, object]) -> Size:
    width, height = _number(said, "width"), _number(said, "height")
    if not width and not height:
        return size
    return width or size[0] * height / size[1], height or size[1] * width / size[0]


def _by_factor(
    factor: Callable[[Size, Mapping[str, object]], float],
) -> Callable[[Size, Mapping[str, object]], Size]:
    def scaled(size: Size, said: Mapping[str, object]) -> Size:
        by = factor(size, said)
        return size[0] * by, size[1] * by

    return scaled


def _match(size: Size, said: Mapping[str, object]) -> Size:
    other = said.get("match")
    if not isinstance(other, Tensor):
        raise InputError("“match size” needs a picture or mask connected to resize_type.match")
    height, width = other.shape[1:3] if other.ndim == 4 else other.shape[-2:]
    return width, height


WAYS: dict[str, Callable[[Size, Mapping[str, object]], Size]] = {
    "scale dimensions": _dimensions,
    "scale by multiplier": _by_factor(lambda size, said: _number(said, "multiplier")),
    "scale longer dimension": _by_factor(lambda size, said: _number(said, "longer_size") / max(size)),
    "scale shorter dimension": _by_factor(lambda size, said: _number(said, "shorter_size") / min(size)),
    "scale width": _by_factor(lambda size, said: _number(said, "width") / size[0]),
    "scale height": _by_factor(lambda size, said: _number(said, "height") / size[1]),
    "scale total pixels": _by_factor(
        lambda size, said: math.sqrt(int(_number(said, "megapixels") * 1024 * 1024) / (size[0] * size[1]))
    ),
    "match size": _match,
}
TO_MULTIPLE = "scale to multiple"


@node(
    "ResizeImageMaskNode",
    category="transform",
    display_name="Resize Image/Mask",
    outputs=("resized",),
    v3=True,
    python_module="comfy_extras.nodes_post_processing",
)
def resize_image_or_mask(
    input: Annotated[Tensor, Socket("IMAGE,MASK")],
    resize_type: Annotated[str, Choice((*WAYS, TO_MULTIPLE))],
    scale_method: Annotated[str, Choice(IMAGE_METHODS)],
    **said: Annotated[object, Socket("*")],
) -> Annotated[Tensor, Socket("*")]:
    """Resize pictures or masks to a size, by a factor, to a side's length, to a number of pixels.

    What the way needs has its name behind a point: `resize_type.width`, `resize_type.multiplier` …"""
    is_mask = input.ndim < 4
    channels_first = as_batch(input)[:, None] if is_mask else input.movedim(-1, 1)
    values = {name.removeprefix("resize_type."): value for name, value in said.items()}
    size = (float(channels_first.shape[-1]), float(channels_first.shape[-2]))
    if resize_type == TO_MULTIPLE:
        resized = _covering(channels_first, int(_number(values, "multiple")), scale_method)
    elif resize_type in WAYS:
        width, height = (max(1, round(side)) for side in WAYS[resize_type](size, values))
        crops = resize_type in ("scale dimensions", "match size")
        crop = cast("str", values.get("crop", "center")) if crops else ""
        resized = resize(channels_first, width, height, scale_method, crop)
    else:
        ways = ", ".join((*WAYS, TO_MULTIPLE))
        raise InputError(f"there is no way to resize called {resize_type!r}; there are {ways}")
    return resized[:, 0] if is_mask else resized.movedim(1, -1)


def _covering(samples: Tensor, multiple: int, method: str) -> Tensor:
    """(B, C, H, W) made as little smaller as covers the greatest multiples within its sides, cut to them.

    What is smaller than one multiple stays as it is."""
    old_height, old_width = samples.shape[-2:]
    if multiple <= 1 or min(old_height, old_width) < multiple:
        return samples
    height, width = (side // multiple * multiple for side in (old_height, old_width))
    if (height, width) == (old_height, old_width):
        return samples
    by_height, by_width = height / old_height, width / old_width
    covers = (
        (width, max(height, math.ceil(old_height * by_width)))
        if by_width >= by_height
        else (max(width, math.ceil(old_width * by_height)), height)
    )
    scaled = resize(samples, *covers, method)
    left, top = (covers[0] - width) // 2, (covers[1] - height) // 2
    return scaled[..., top : top + height, left : left + width]


def _number(said: Mapping[str, object], name: str) -> float:
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"resize_type.{name} should be a number, not {value!r}")
    return value
