"""Nodes on masks (B, H, W), and on masks with pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from loraloom.engine.node import Choice, Files, NodeResult, NodeRun, Number, Options, node
from loraloom.errors import InputError
from loraloom.nodes.composition import equal_channels, paste
from loraloom.nodes.picture_files import HIDDEN, input_path, preview_image, read_picture
from loraloom.nodes.sockets import Image, Mask
from loraloom.resampling import as_batch, resize_mask
from loraloom.runtime.services import services

EXTRA = "comfy_extras.nodes_mask"
COMPOSITING = "comfy_extras.nodes_compositing"
CHANNELS = ("red", "green", "blue", "alpha")

Place = Annotated[int, Number(min=0, max=16384, step=1)]
Length = Annotated[int, Number(min=1, max=16384, step=1)]
Share = Annotated[float, Number(min=0.0, max=1.0, step=0.01)]

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiply": lambda a, b: a * b,
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "and": lambda a, b: (a.round().bool() & b.round().bool()).float(),
    "or": lambda a, b: (a.round().bool() | b.round().bool()).float(),
    "xor": lambda a, b: (a.round().bool() ^ b.round().bool()).float(),
}


@node("MaskToImage", category="mask", display_name="Convert Mask to Image", python_module=EXTRA)
def mask_to_image(mask: Mask) -> Image:
    """Show masks as grey pictures."""
    return as_batch(mask)[..., None].expand(-1, -1, -1, 3)


@node("ImageToMask", category="mask", display_name="Convert Image to Mask", python_module=EXTRA)
def image_to_mask(image: Image, channel: Annotated[str, Choice(CHANNELS)]) -> Mask:
    """Take a channel of pictures as masks."""
    index = CHANNELS.index(channel)
    if index >= image.shape[-1]:
        raise InputError(f"the picture has no {channel} channel; it has {image.shape[-1]} channels")
    return image[..., index]


@node("ImageColorToMask", category="mask", display_name="ImageColorToMask", python_module=EXTRA)
def color_to_mask(
    image: Image, color: Annotated[int, Number(min=0, max=0xFFFFFF, step=1, display="color")] = 0
) -> Mask:
    """White where pictures have exactly one colour, 0xRRGGBB."""
    levels = (image[..., :3].clamp(0, 1) * 255.0).round().int()
    wanted = torch.tensor([color >> 16, color >> 8 & 0xFF, color & 0xFF], dtype=torch.int)
    return (levels == wanted.to(levels)).all(-1).float()


@node("SolidMask", category="mask", display_name="SolidMask", python_module=EXTRA)
def solid_mask(value: Share = 1.0, width: Length = 512, height: Length = 512) -> Mask:
    """A mask of one value."""
    return torch.full((1, height, width), value)


@node("InvertMask", category="mask", display_name="InvertMask", python_module=EXTRA)
def invert_mask(mask: Mask) -> Mask:
    """Swap black and white."""
    return 1.0 - mask


@node("ThresholdMask", category="mask", display_name="ThresholdMask", python_module=EXTRA)
def threshold_mask(mask: Mask, value: Share = 0.5) -> Mask:
    """White where a mask is above a value, black elsewhere."""
    return (mask > value).float()


@node("CropMask", category="mask", display_name="CropMask", python_module=EXTRA)
def crop_mask(mask: Mask, x: Place = 0, y: Place = 0, width: Length = 512, height: Length = 512) -> Mask:
    """Cut a rectangle out of masks."""
    return as_batch(mask)[:, y : y + height, x : x + width]


@node("MaskComposite", category="mask", display_name="MaskComposite", python_module=EXTRA)
def composite_masks(
    *,
    destination: Mask,
    source: Mask,
    x: Place = 0,
    y: Place = 0,
    operation: Annotated[str, Choice(tuple(OPERATIONS))],
) -> Mask:
    """Join one mask with another at a place."""
    result, source = as_batch(destination).clone(), as_batch(source)
    part = result[:, y : y + source.shape[1], x : x + source.shape[2]]
    part[:] = OPERATIONS[operation](part, source[:, : part.shape[1], : part.shape[2]].to(part))
    return result.clamp(0.0, 1.0)


@node("FeatherMask", category="mask", display_name="FeatherMask", python_module=EXTRA)
def feather_mask(mask: Mask, left: Place = 0, top: Place = 0, right: Place = 0, bottom: Place = 0) -> Mask:
    """Let masks fade towards their edges."""
    result = as_batch(mask).clone()
    height, width = result.shape[-2:]
    for dimension, size, near, far in ((2, width, left, right), (1, height, top, bottom)):
        near, far = min(near, size), min(far, size)
        line = torch.ones(size)
        line[:near] *= (torch.arange(near) + 1) / max(near, 1)
        # ComfyUI counts the far edge from 0, so that its outermost step falls on the first row or column.
        line[-torch.arange(far)] *= (torch.arange(far) + 1) / max(far, 1)
        result *= line if dimension == 2 else line[:, None]
    return result


@node("GrowMask", category="mask", display_name="GrowMask", python_module=EXTRA)
def grow_mask(
    mask: Mask,
    expand: Annotated[int, Number(min=-16384, max=16384, step=1)] = 0,
    tapered_corners: bool = True,
) -> Mask:
    """Widen the white of masks by some pixels, or narrow it by a negative number of them."""
    from scipy.ndimage import grey_dilation, grey_erosion

    corner = 0 if tapered_corners else 1
    footprint = [[corner, 1, corner], [1, 1, 1], [corner, 1, corner]]
    change = grey_erosion if expand < 0 else grey_dilation
    grown: list[Tensor] = []
    for one in as_batch(mask):
        array = one.cpu().numpy()
        for _ in range(min(abs(expand), sum(array.shape))):
            array = change(array, footprint=footprint)
        grown.append(torch.from_numpy(array))
    return torch.stack(grown)


@node(
    "MaskPreview",
    category="mask",
    display_name="MaskPreview",
    outputs=("mask",),
    output_types=("MASK",),
    later_outputs=True,
    output_node=True,
    hidden=HIDDEN,
    python_module=EXTRA,
)
def preview_mask(mask: Mask, *, run: NodeRun) -> NodeResult:
    """Write masks as pictures to the temporary folder."""
    return NodeResult((mask,), ui=preview_image(mask_to_image(mask), run=run).ui)


@node("LoadImageMask", category="mask", display_name="Load Image (as Mask)")
def load_mask(
    image: Annotated[str, Files("input"), Options({"image_upload": True})],
    channel: Annotated[str, Choice(("alpha", "red", "green", "blue"))],
    *,
    run: NodeRun,
) -> Mask:
    """Read a channel of a picture from the input folder as a mask; transparent is white."""
    found = services(run)
    pixels, transparent = read_picture(input_path(found, image), found.settings.max_pixels)
    if channel != "alpha":
        return pixels[:1, ..., CHANNELS.index(channel)]
    opaque = transparent.shape[1:] != pixels.shape[1:3]
    return torch.zeros(1, *pixels.shape[1:3]) if opaque else transparent[:1]


@node("ImageCompositeMasked", category="image", display_name="ImageCompositeMasked", python_module=EXTRA)
def composite_images(
    destination: Image,
    source: Image,
    x: Place = 0,
    y: Place = 0,
    resize_source: bool = False,
    mask: Mask | None = None,
) -> Image:
    """Lay one picture over another where the mask says."""
    source = equal_channels(destination, source).movedim(-1, 1)
    return paste(destination.movedim(-1, 1), source, (x, y), mask, resize_source).movedim(1, -1)


@node(
    "JoinImageWithAlpha",
    category="mask/compositing",
    display_name="Join Image with Alpha",
    v3=True,
    python_module=COMPOSITING,
)
def join_alpha(image: Image, alpha: Mask) -> Image:
    """Make pictures transparent where a mask is white."""
    opacity = 1.0 - resize_mask(alpha, image.shape[2], image.shape[1])
    count = min(len(image), len(opacity))
    return torch.cat([image[:count, ..., :3], opacity[:count, ..., None].to(image)], dim=-1)


@node(
    "SplitImageWithAlpha",
    category="mask/compositing",
    display_name="Split Image with Alpha",
    v3=True,
    python_module=COMPOSITING,
)
def split_alpha(image: Image) -> tuple[Image, Mask]:
    """Divide pictures into colours and a mask that is white where they are transparent."""
    opacity = image[..., 3] if image.shape[-1] > 3 else torch.ones_like(image[..., 0])
    return image[..., :3], 1.0 - opacity
