"""Nodes that change the size, the place and the number of pictures (B, H, W, C)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.engine.node import Choice, Number, Options, node
from loraloom.errors import InputError
from loraloom.nodes.latents import Flip, Rotation, quarter_turns
from loraloom.nodes.sockets import BatchSize, Image, Mask, Seed
from loraloom.resampling import CROPS, IMAGE_METHODS, resize_image

EXTRA = "comfy_extras.nodes_images"
Side = Annotated[int, Number(min=0, max=16384, step=1)]
Length = Annotated[int, Number(min=1, max=16384, step=1)]
Margin = Annotated[int, Number(min=0, max=16384, step=8)]
Method = Annotated[str, Choice(IMAGE_METHODS)]

COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
}

KONTEXT_SIZES = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
    (1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688),
    (1568, 672),
)  # fmt: skip
"""Width and height of the pictures that Flux.1 Kontext was trained on."""


@node("ImageScale", category="image/upscaling", display_name="Upscale Image")
def scale_image(
    *,
    image: Image,
    upscale_method: Method,
    width: Side = 512,
    height: Side = 512,
    crop: Annotated[str, Choice(CROPS)],
) -> Image:
    """Resize pictures; a width or height of 0 keeps the proportions."""
    if width == 0 and height == 0:
        return image
    old_height, old_width = image.shape[1:3]
    width = width or max(1, round(old_width * height / old_height))
    height = height or max(1, round(old_height * width / old_width))
    return resize_image(image, width, height, upscale_method, crop)


@node("ImageScaleBy", category="image/upscaling", display_name="Upscale Image By")
def scale_image_by(
    image: Image,
    upscale_method: Method,
    scale_by: Annotated[float, Number(min=0.01, max=8.0, step=0.01)] = 1.0,
) -> Image:
    """Resize pictures by a factor."""
    height, width = (round(side * scale_by) for side in image.shape[1:3])
    return resize_image(image, width, height, upscale_method)


@node(
    "ImageScaleToTotalPixels",
    category="image/upscaling",
    v3=True,
    python_module="comfy_extras.nodes_post_processing",
)
def scale_image_to_pixels(
    image: Image,
    upscale_method: Method,
    megapixels: Annotated[float, Number(min=0.01, max=16.0, step=0.01)] = 1.0,
) -> Image:
    """Resize pictures to a number of pixels; a megapixel has 1024 × 1024."""
    old_height, old_width = image.shape[1:3]
    factor = math.sqrt(int(megapixels * 1024 * 1024) / (old_width * old_height))
    return resize_image(image, round(old_width * factor), round(old_height * factor), upscale_method)


@node(
    "ImageScaleToMaxDimension",
    category="image/upscaling",
    display_name="ImageScaleToMaxDimension",
    python_module=EXTRA,
)
def scale_image_to_side(
    image: Image,
    upscale_method: Annotated[
        str, Choice(("area", "lanczos", "bilinear", "nearest-exact", "bilinear", "bicubic"))
    ],
    largest_size: Side = 512,
) -> Image:
    """Resize pictures so that their longer side has a given length."""
    height, width = image.shape[1:3]
    if height > width:
        width, height = round(width / height * largest_size), largest_size
    elif width > height:
        width, height = largest_size, round(height / width * largest_size)
    else:
        width = height = largest_size
    return resize_image(image, width, height, upscale_method)


@node(
    "FluxKontextImageScale",
    category="advanced/conditioning/flux",
    v3=True,
    python_module="comfy_extras.nodes_flux",
)
def scale_image_for_kontext(image: Image) -> Image:
    """Resize pictures to the size nearest in proportion that Flux.1 Kontext was trained on."""
    ratio = image.shape[2] / image.shape[1]
    _, width, height = min((abs(ratio - w / h), w, h) for w, h in KONTEXT_SIZES)
    return resize_image(image, width, height, "lanczos", "center")


@node("ResizeAndPadImage", category="image/transform", display_name="ResizeAndPadImage", python_module=EXTRA)
def resize_and_pad(
    *,
    image: Image,
    target_width: Length = 512,
    target_height: Length = 512,
    padding_color: Annotated[str, Choice(("white", "black"))],
    interpolation: Annotated[str, Choice(("area", "bicubic", "nearest-exact", "bilinear", "lanczos"))],
) -> Image:
    """Fit pictures into a rectangle, with bars of one colour where the proportions differ."""
    height, width = image.shape[1:3]
    scale = min(target_width / width, target_height / height)
    width, height = int(width * scale), int(height * scale)
    fitted = resize_image(image, width, height, interpolation)
    left, top = (target_width - width) // 2, (target_height - height) // 2
    bars = (0, 0, left, target_width - width - left, top, target_height - height - top)
    return F.pad(fitted, bars, value=COLOURS[padding_color][0])


@node("ImageCrop", category="image/transform", display_name="Image Crop", python_module=EXTRA)
def crop_image(image: Image, width: Length = 512, height: Length = 512, x: Side = 0, y: Side = 0) -> Image:
    """Cut a rectangle out of pictures."""
    left, top = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
    return image[:, top : top + height, left : left + width]


@node("ImageRotate", category="image/transform", display_name="ImageRotate", python_module=EXTRA)
def rotate_image(image: Image, rotation: Rotation) -> Image:
    """Turn pictures clockwise."""
    return image.rot90(quarter_turns(rotation), (2, 1))


@node("ImageFlip", category="image/transform", display_name="ImageFlip", python_module=EXTRA)
def flip_image(image: Image, flip_method: Flip) -> Image:
    """Mirror pictures."""
    return image.flip(1 if flip_method.startswith("x") else 2)


@node("ImageStitch", category="image/transform", display_name="Image Stitch", python_module=EXTRA)
def stitch_images(
    *,
    image1: Image,
    direction: Annotated[str, Choice(("right", "down", "left", "up"))] = "right",
    match_image_size: bool = True,
    spacing_width: Annotated[int, Number(min=0, max=1024, step=2)] = 0,
    spacing_color: Annotated[str, Choice(tuple(COLOURS))] = "white",
    image2: Image | None = None,
) -> Image:
    """Put one picture beside another, on the side that `direction` says."""
    if image2 is None:
        return image1
    across = direction in ("left", "right")
    batch = max(len(image1), len(image2))
    image1, image2 = (
        torch.cat([image, image[-1:].expand(batch - len(image), -1, -1, -1)]) for image in (image1, image2)
    )
    if match_image_size:
        height, width = image1.shape[1:3]
        ratio = image2.shape[2] / image2.shape[1]
        size = (int(height * ratio), height) if across else (width, int(width / ratio))
        image2 = resize_image(image2, *size, "lanczos")
    else:
        grey = COLOURS[spacing_color][0] if spacing_color in ("white", "black") else 0.0
        side = 1 if across else 2
        longest = max(image1.shape[side], image2.shape[side])
        image1, image2 = (_centred(image, side, longest, grey) for image in (image1, image2))
    channels = max(image1.shape[3], image2.shape[3])
    image1, image2 = (F.pad(image, (0, channels - image.shape[3]), value=1.0) for image in (image1, image2))
    row = [image1, image2] if direction in ("right", "down") else [image2, image1]
    if spacing_width:
        thickness = spacing_width + spacing_width % 2
        colour = torch.tensor([*COLOURS[spacing_color], 1.0][:channels])
        size = (image1.shape[1], thickness) if across else (thickness, image1.shape[2])
        row.insert(1, colour.expand(batch, *size, channels))
    return torch.cat(row, dim=2 if across else 1)


def _centred(image: Tensor, dimension: int, size: int, value: float) -> Tensor:
    """A picture with bars on both sides of a dimension, up to a size."""
    missing = size - image.shape[dimension]
    bars = (missing // 2, missing - missing // 2)
    return F.pad(image, (0, 0, 0, 0, *bars) if dimension == 1 else (0, 0, *bars), value=value)


@node("ImagePadForOutpaint", category="image", display_name="Pad Image for Outpainting")
def pad_for_outpainting(
    image: Image,
    left: Margin = 0,
    top: Margin = 0,
    right: Margin = 0,
    bottom: Margin = 0,
    feathering: Side = 40,
) -> tuple[Image, Mask]:
    """Put a grey margin around pictures, with the mask to paint it: white outside, soft at the seams."""
    height, width = image.shape[1:3]
    padded = F.pad(image, (0, 0, left, right, top, bottom), value=0.5)
    soft = torch.zeros(height, width)
    if feathering > 0 and feathering * 2 < height and feathering * 2 < width:
        rows, columns = torch.arange(height), torch.arange(width)
        far = torch.full((1,), max(height, width))
        down = torch.minimum(rows if top else far, height - rows if bottom else far)
        across = torch.minimum(columns if left else far, width - columns if right else far)
        distance = torch.minimum(down[:, None], across[None, :]).expand(height, width)
        soft = ((feathering - distance) / feathering).clamp(min=0).square()
    mask = torch.ones(1, height + top + bottom, width + left + right)
    mask[:, top : top + height, left : left + width] = soft
    return padded, mask


@node("ImageBatch", category="image", display_name="Batch Images")
def batch_images(image1: Image, image2: Image) -> Image:
    """Join two batches of pictures; the second is resized to the first."""
    return _joined([image1, image2])


@node(
    "BatchImagesNode",
    category="image",
    display_name="Batch Images",
    v3=True,
    python_module="comfy_extras.nodes_post_processing",
)
def batch_many_images(**images: Image) -> Image:
    """Join any number of batches of pictures, `images.image0` and on; all are resized to the first."""
    given = [images[name] for name in sorted(images, key=_last_number)]
    if not given:
        raise InputError("no pictures are connected; connect images.image0, images.image1 …")
    return _joined(given)


def _last_number(name: str) -> int:
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else 0


def _joined(batches: Sequence[Tensor]) -> Tensor:
    channels = max(image.shape[3] for image in batches)
    height, width = batches[0].shape[1:3]
    return torch.cat(
        [
            opaque
            if opaque.shape[1:3] == (height, width)
            else resize_image(opaque, width, height, "bilinear", "center")
            for opaque in (F.pad(image, (0, channels - image.shape[3]), value=1.0) for image in batches)
        ]
    )


@node("RepeatImageBatch", category="image/batch", display_name="RepeatImageBatch", python_module=EXTRA)
def repeat_images(image: Image, amount: BatchSize = 1) -> Image:
    """Repeat a batch of pictures."""
    return image.repeat(amount, 1, 1, 1)


@node("ImageFromBatch", category="image/batch", display_name="ImageFromBatch", python_module=EXTRA)
def images_from_batch(
    image: Image, batch_index: Annotated[int, Number(min=0, max=4095)] = 0, length: BatchSize = 1
) -> Image:
    """Take some pictures out of a batch."""
    start = min(len(image) - 1, batch_index)
    return image[start : start + length].clone()


@node(
    "RebatchImages",
    category="image/batch",
    display_name="Rebatch Images",
    input_is_list=True,
    output_is_list=(True,),
    v3=True,
    python_module="comfy_extras.nodes_rebatch",
)
def rebatch_images(
    *, images: list[Image], batch_size: Annotated[list[BatchSize], Options({"default": 1})]
) -> list[Image]:
    """Divide a list of batches of pictures into batches of another size."""
    single = [one for batch in images for one in batch.split(1)]
    return [
        torch.cat(single[start : start + batch_size[0]]) for start in range(0, len(single), batch_size[0])
    ]


@node("ImageInvert", category="image", display_name="Invert Image")
def invert_image(image: Image) -> Image:
    """Turn every colour into its opposite."""
    return 1.0 - image


@node("ImageAddNoise", category="image", display_name="ImageAddNoise", python_module=EXTRA)
def add_image_noise(
    image: Image, seed: Seed = 0, strength: Annotated[float, Number(min=0.0, max=1.0, step=0.01)] = 0.5
) -> Image:
    """Add normal noise to pictures."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + strength * noise.to(image)).clamp(0.0, 1.0)


@node(
    "GetImageSize",
    category="image",
    display_name="Get Image Size",
    outputs=("width", "height", "batch_size"),
    hidden={"unique_id": "UNIQUE_ID"},
    python_module=EXTRA,
)
def image_size(image: Image) -> tuple[int, int, int]:
    """Width, height and number of pictures."""
    batch, height, width = image.shape[:3]
    return width, height, batch
