"""Nodes that read and write pictures. A saved picture carries its workflow and its LoRA receipts, so that
it opens again here and in ComfyUI."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from loraloom.engine.node import Files, NodeResult, NodeRun, Number, Options, node
from loraloom.errors import InputError, LoraloomError
from loraloom.nodes.sockets import BatchSize, Image, Mask
from loraloom.pictures import in_8_bits
from loraloom.runtime.output_files import OutputFolder
from loraloom.runtime.services import Services, services
from loraloom.workflow.graph import JSON

HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
PictureFile = Annotated[str, Files("input"), Options({"image_upload": True})]
Side = Annotated[int, Number(min=1, max=16384, step=1)]


@node(
    "SaveImage",
    category="image",
    display_name="Save Image",
    outputs=("images",),
    output_types=("IMAGE",),
    later_outputs=True,
    output_node=True,
    hidden=HIDDEN,
)
def save_image(images: Image, filename_prefix: str = "ComfyUI", *, run: NodeRun) -> NodeResult:
    """Write pictures to the output folder as PNG, each with its workflow."""
    return _write(images, filename_prefix, services(run).output, run, compress_level=4)


@node(
    "PreviewImage",
    category="image",
    display_name="Preview Image",
    outputs=("images",),
    output_types=("IMAGE",),
    later_outputs=True,
    output_node=True,
    hidden=HIDDEN,
)
def preview_image(images: Image, *, run: NodeRun) -> NodeResult:
    """Write pictures to the temporary folder."""
    return _write(images, "ComfyUI_temp", services(run).temp, run, compress_level=1)


@node("LoadImage", category="image", display_name="Load Image")
def load_image(image: PictureFile, *, run: NodeRun) -> tuple[Image, Mask]:
    """Read a picture from the input folder; its mask is where it is transparent.

    Frames of an animation become a batch. A name may end in ` [output]` or ` [temp]`."""
    found = services(run)
    return read_picture(input_path(found, image), found.settings.max_pixels)


@node("EmptyImage", category="image", display_name="EmptyImage")
def empty_image(
    width: Side = 512,
    height: Side = 512,
    batch_size: BatchSize = 1,
    color: Annotated[int, Number(min=0, max=0xFFFFFF, step=1, display="color")] = 0,
) -> Image:
    """Pictures of one colour, given as 0xRRGGBB."""
    rgb = torch.tensor([(color >> 16) & 0xFF, (color >> 8) & 0xFF, color & 0xFF], dtype=torch.float32) / 255
    return rgb.expand(batch_size, height, width, 3).clone()


def input_path(found: Services, name: str) -> Path:
    """The file that a name of the input folder means, with ComfyUI's ` [output]` annotations.

    Raises InputError for a name that is not there or leads out of its folder."""
    roots = {"input": found.input_dir, "output": found.output.root, "temp": found.temp.root}
    folder, bare = "input", name
    for kind in roots:
        if name.endswith(f"[{kind}]"):
            folder, bare = kind, name[: -len(kind) - 2].rstrip()
    root = Path(os.path.realpath(roots[folder]))
    path = Path(os.path.realpath(root / bare.replace("\\", "/"))) if "\0" not in bare else root
    if path == root or not path.is_relative_to(root):
        raise InputError(f"{name!r} leads out of the {folder} folder {root}")
    if not path.is_file():
        raise InputError(f"{name!r} is not in the {folder} folder {root}; put the file there")
    return path


def read_picture(path: Path, max_pixels: int) -> tuple[Tensor, Tensor]:
    """Picture(s) (B, H, W, 3) and mask (B, H, W), 1 where transparent, from a file.

    Raises InputError when it is no picture or larger than `max_pixels`."""
    try:
        with PillowImage.open(path) as file:
            if file.width * file.height > max_pixels:
                raise InputError(
                    f"{path.name} has {file.width}×{file.height} pixels; at most {max_pixels} are accepted"
                )
            frames = [_frame(frame) for frame in ImageSequence.Iterator(file) if frame.size == file.size]
    except InputError:
        raise
    except Exception as e:  # on damage Pillow lets through whatever the libraries of its formats raise
        raise InputError(f"{path.name} cannot be read as a picture: {e}") from e
    if file.format == "MPO":
        frames = frames[:1]
    return torch.cat([f[0] for f in frames]), torch.cat([f[1] for f in frames])


def picture_arrays(images: Tensor) -> list[np.ndarray]:
    """8-bit pictures (H, W, 3 or 4) from (B, H, W, C), truncated as ComfyUI does.

    Raises LoraloomError on values that are no numbers: such a picture would be black."""
    if not torch.isfinite(images).all():
        raise LoraloomError(
            "the picture holds values that are no numbers (NaN or infinity); "
            "run with --dtype fp32, or lower the LoRA strengths"
        )
    return list((images.float() * 255.0).clamp(0, 255).to(torch.uint8).cpu().numpy())


def _frame(frame: PillowImage.Image) -> tuple[Tensor, Tensor]:
    image = ImageOps.exif_transpose(frame)
    pixels = np.asarray(in_8_bits(image).convert("RGB"), dtype=np.float32) / 255.0
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"), dtype=np.float32) / 255.0
        mask = 1.0 - torch.from_numpy(alpha)
    else:
        mask = torch.zeros((64, 64))
    return torch.from_numpy(pixels)[None], mask[None]


def _write(
    images: Tensor, prefix: str, folder: OutputFolder, run: NodeRun, compress_level: int
) -> NodeResult:
    saved: list[JSON] = []
    for index, array in enumerate(picture_arrays(images)):
        run.check_cancelled()
        buffer = io.BytesIO()
        picture = PillowImage.fromarray(array)
        picture.save(buffer, "PNG", pnginfo=_metadata(run), compress_level=compress_level)
        name = prefix.replace("%batch_num%", str(index))
        file = folder.save(name, ".png", buffer.getvalue(), size=picture.size)
        saved.append(file.as_ui())
    return NodeResult((images,), ui={"images": saved})


def metadata_texts(run: NodeRun) -> dict[str, str]:
    """What a picture says of its origin, by PNG keyword; nothing when metadata is switched off."""
    if not services(run).settings.metadata:
        return {}
    texts = {"prompt": json.dumps(run.prompt)} if run.prompt else {}
    texts |= {key: json.dumps(value) for key, value in run.extra_pnginfo.items()}
    receipts, fast = run.notes("lora"), run.notes("fast")
    if receipts or fast:
        texts["loraloom"] = json.dumps({"loras": receipts, **({"fast": fast} if fast else {})})
    return texts


def _metadata(run: NodeRun) -> PngInfo:
    info = PngInfo()
    for keyword, text in metadata_texts(run).items():
        info.add_text(keyword, text)
    return info
