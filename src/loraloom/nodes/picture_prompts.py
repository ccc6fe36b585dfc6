"""Prompts with pictures, for models that edit them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from loraloom.engine.node import Choice, NodeRun, Number, Socket, node
from loraloom.errors import InputError
from loraloom.models.handles import Autoencoder
from loraloom.models.text.templates import ALTER, PICTURE
from loraloom.nodes.sockets import Clip, Conditioning, Image, Latent, LatentValue, Model, Prompt, Vae
from loraloom.resampling import resize_image
from loraloom.runtime.prompts import embedding_files, encode
from loraloom.runtime.services import services

VAE_AREA = 1024 * 1024
SEEN_AREA = 384 * 384
"""Pixels that pictures are brought to, for the autoencoder and for the text encoder."""

LATENT_CHANNELS, PIXELS_PER_CELL, MULTIPLE = 64, 16, 32
"""Of Qwen-Image 2.1."""


@node(
    "TextEncodeQwenImageEdit",
    category="advanced/conditioning",
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_qwen",
)
def encode_for_edit(
    clip: Clip, prompt: Prompt, vae: Vae | None = None, image: Image | None = None, *, run: NodeRun
) -> Conditioning:
    """Encode an instruction together with the picture that it is about."""
    if image is None:
        return encode(clip, prompt, {}, run)
    picture = to_area(image, VAE_AREA)[..., :3]
    references = () if vae is None else (_latent(vae, picture, run),)
    return encode(clip, PICTURE + prompt, _referring(references, vae), run, [picture[:1]])


@node(
    "TextEncodeQwenImageEditPlus",
    category="advanced/conditioning",
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_qwen",
)
def encode_for_edit_plus(
    clip: Clip,
    prompt: Prompt,
    vae: Vae | None = None,
    image1: Image | None = None,
    image2: Image | None = None,
    image3: Image | None = None,
    *,
    run: NodeRun,
) -> Conditioning:
    """Encode an instruction together with up to three pictures that it speaks of by number."""
    given = [(number, image) for number, image in enumerate((image1, image2, image3), 1) if image is not None]
    text = "".join(f"Picture {number}: {PICTURE}" for number, _ in given) + prompt
    seen = [to_area(image, SEEN_AREA)[:1, ..., :3] for _, image in given]
    references: tuple[Tensor, ...] = ()
    if vae is not None:
        references = tuple(_latent(vae, to_area(image, VAE_AREA, 8)[..., :3], run) for _, image in given)
    return encode(clip, text, _referring(references, vae), run, seen, template=ALTER)


@node(
    "TextEncodeQwenImage21",
    category="advanced/conditioning",
    outputs=("positive", "negative", "latent"),
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_qwen",
)
def encode_for_qwen_image21(
    clip: Clip,
    prompt: Prompt,
    negative_prompt: Prompt,
    vae: Vae | None = None,
    resolution: Annotated[int, Number(min=0, max=16384, step=32)] = 1024,
    *,
    run: NodeRun,
    **images: Annotated[object, Socket("IMAGE")],
) -> tuple[Conditioning, Conditioning, Latent]:
    """Encode a prompt and a negative one for Qwen-Image 2.1, with pictures, and make the empty latent.

    Pictures are connected as `images.image_1`, `images.image_2` …"""
    pictures = [to_resolution(image, resolution) for image in numbered(images, "image_")]
    references = () if vae is None else tuple(_latent(vae, picture, run) for picture in pictures)
    head = " ".join(f"<image{number}>{PICTURE}" for number in range(1, len(pictures) + 1))
    positive, negative = (
        encode(
            clip,
            head + (text or " "),
            _referring(references, vae),
            run,
            [_over_white(picture) for picture in pictures],
            keep_pictures=not references,
        )
        for text in (prompt, negative_prompt)
    )
    height, width = pictures[0].shape[1:3] if pictures else _sides(1.0, resolution)
    cells = (height // PIXELS_PER_CELL, width // PIXELS_PER_CELL)
    return positive, negative, LatentValue(samples=torch.zeros(1, LATENT_CHANNELS, *cells))


@node(
    "QwenImage21Cache",
    category="advanced/model",
    display_name="Qwen Image 2.1 Cache",
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_qwen",
)
def keep_keys_and_values(
    model: Model,
    device: Annotated[str, Choice(("auto", "gpu", "cpu", "off"))] = "auto",
    dtype: Annotated[str, Choice(("default", "int8", "int4"))] = "default",
) -> Model:
    """Keep what a model makes of the prompt and its pictures for all steps, where memory is left for it.

    device: auto takes the GPU's spare memory first, then the host's. dtype: default changes no number; int8
    halves what is kept, int4 quarters it, at a loss."""
    told = model.with_option("keeps_prefix", device != "off")
    return told.with_option("kept_on", device).with_option("kept_as", dtype)


def to_area(image: Tensor, area: int, multiple: int = 1) -> Tensor:
    """Pictures (B, H, W, C) brought to about so many pixels, each side rounded to a multiple."""
    height, width = image.shape[1:3]
    factor = math.sqrt(area / (width * height))
    wide, tall = (round(side * factor / multiple) * multiple for side in (width, height))
    return resize_image(image, wide, tall, "area")


def to_resolution(image: Tensor, resolution: int) -> Tensor:
    """The first picture, with as many pixels as a square of the resolution's side; 0: as many as it has.
    Sides are multiples of 32."""
    height, width = image.shape[1:3]
    tall, wide = _sides(width / height, resolution or math.sqrt(width * height))
    return image[:1] if (tall, wide) == (height, width) else resize_image(image[:1], wide, tall, "lanczos")


def _sides(ratio: float, resolution: float) -> tuple[int, int]:
    area = resolution * resolution
    tall, wide = (
        max(round(math.sqrt(side) / MULTIPLE), 1) * MULTIPLE for side in (area / ratio, area * ratio)
    )
    return tall, wide


def numbered(images: Mapping[str, object], start: str) -> list[Tensor]:
    """The pictures of `images.START1`, `images.START2` … in the order of their numbers."""
    found: dict[int, Tensor] = {}
    for name, image in images.items():
        match = re.fullmatch(rf"images\.{start}(\d+)", name)
        if match is None or not isinstance(image, Tensor):
            raise InputError(f"{name} is no picture of this node; connect pictures as images.{start}1, …")
        found[int(match[1])] = image
    return [found[number] for number in sorted(found)]


def _over_white(picture: Tensor) -> Tensor:
    """Without the fourth channel, which says how much of the picture covers a white ground."""
    if picture.shape[-1] < 4:
        return picture
    alpha = picture[..., 3:4]
    return picture[..., :3] * alpha + (1 - alpha)


def _latent(vae: Autoencoder, picture: Tensor, run: NodeRun) -> Tensor:
    return services(run).memory.autoencoder(vae).encode(picture)


def _referring(latents: Sequence[Tensor], vae: Autoencoder | None) -> dict[str, object]:
    if vae is None or not latents:
        return {}
    return {"reference_latents": tuple(latents), "latent_encoders": (vae.kind.name,)}
