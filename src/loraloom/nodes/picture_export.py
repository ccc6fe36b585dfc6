"""Saving with more choice than SaveImage has, and comparing two pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from loraloom.engine.node import Choice, NodeResult, NodeRun, Socket, node
from loraloom.errors import InputError, LoraloomError
from loraloom.nodes.picture_files import HIDDEN, metadata_texts, preview_image, save_image
from loraloom.nodes.sockets import Image
from loraloom.runtime.services import services


@node(
    "SaveImageAdvanced",
    category="image",
    display_name="Save Image (Advanced)",
    outputs=("images",),
    output_types=("IMAGE",),
    output_node=True,
    hidden=HIDDEN,
    v3=True,
    python_module="comfy_extras.nodes_images",
)
def save_image_advanced(
    images: Image,
    filename_prefix: str = "ComfyUI",
    format: Annotated[str, Choice(("png",))] = "png",
    *,
    run: NodeRun,
    **said: Annotated[object, Socket("*")],
) -> NodeResult:
    """Write pictures as PNG with 8 or 16 bits per channel (`format.bit_depth`), each with its workflow."""
    depth, space = said.get("format.bit_depth", "8-bit"), said.get("format.input_color_space", "sRGB")
    if format != "png" or depth not in ("8-bit", "16-bit") or space != "sRGB":
        raise InputError(
            f"{format} with {depth} and colour space {space} is not written; choose png and sRGB"
        )
    if depth == "8-bit":
        saved = save_image(images, filename_prefix, run=run)
        return NodeResult(outputs=(images,), ui=saved.ui)
    if not torch.isfinite(images).all():
        raise LoraloomError("the picture holds values that are no numbers (NaN or infinity)")
    texts = metadata_texts(run)
    files = [
        services(run).output.save(
            filename_prefix.replace("%batch_num%", str(index)),
            ".png",
            png16(one, texts),
            size=(one.shape[1], one.shape[0]),
        )
        for index, one in enumerate(images)
    ]
    return NodeResult(outputs=(images,), ui={"images": [file.as_ui() for file in files]})


@node(
    "ImageCompare",
    category="image",
    display_name="Image Compare",
    output_node=True,
    experimental=True,
    hidden=HIDDEN,
    v3=True,
    python_module="comfy_extras.nodes_image_compare",
)
def compare_images(image_a: Image | None = None, image_b: Image | None = None, *, run: NodeRun) -> NodeResult:
    """Show two pictures for comparison."""
    shown = {"a_images": image_a, "b_images": image_b}
    return NodeResult(
        ui={
            name: [] if image is None else preview_image(image, run=run).ui["images"]
            for name, image in shown.items()
        }
    )


def png16(image: Tensor, texts: dict[str, str]) -> bytes:
    """(H, W, 3 or 4) in [0, 1] as a PNG with 16 bits per channel, which Pillow does not write.

    texts: keyword → Latin-1 text, stored as tEXt (https://www.w3.org/TR/png/#11tEXt)."""
    height, width, channels = image.shape
    values = (image.float().clamp(0, 1) * 65535.0).round().cpu().numpy().astype(">u2")
    rows = np.zeros((height, 1 + width * channels * 2), dtype=np.uint8)
    rows[:, 1:] = values.reshape(height, -1).view(np.uint8)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    return b"".join(_png_chunks(head, zlib.compress(rows.tobytes(), 4), texts))


def _png_chunks(head: bytes, data: bytes, texts: dict[str, str]) -> Iterator[bytes]:
    yield b"\x89PNG\r\n\x1a\n"
    notes = [(b"tEXt", f"{key}\0{text}".encode("latin-1", "strict")) for key, text in texts.items()]
    for kind, content in [(b"IHDR", head), *notes, (b"IDAT", data), (b"IEND", b"")]:
        check = zlib.crc32(kind + content)
        yield struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
