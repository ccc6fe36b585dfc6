"""Stable Diffusion's UNet as sampling uses it: conditioning in, network output out.

The sizes that SDXL is told (Podell et al. 2023, §2.2) and the inpainting channels (Rombach et al. 2022)
become network inputs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from loraloom.models.diffusion_network import Run
from loraloom.models.parts.latent_maps import fit, one_channel
from loraloom.models.parts.picture_vectors import embed_number, picture_vector
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

SIZE_WIDTH = 256
"""Width of the embedding of each number that SDXL is told."""

BLANK_LATENT = (0.8223, -0.6876, 0.6364, 0.1380)
"""A grey picture as the network sees its latents: what inpainting is given without a picture."""


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states and, for inpainting models, mask and picture."""
    context = Tokens(cond.context, "repeat")
    if run.number("in_channels") == run.latents.channels:
        return Inputs({"context": context})
    return Inputs({"context": context}, maps={"inpainting": _inpainting(cond, run)})


def told(cond: Cond, run: Run, numbers: list[float]) -> Inputs:
    """As `inputs`, with the pooled prompt, or pictures in its place, and embedded numbers (sizes, scores)
    beside."""
    embedded = torch.cat([embed_number(number, SIZE_WIDTH) for number in numbers])[None]
    width = run.number("projection_class_embeddings_input_dim") - embedded.shape[1]
    seen = picture_vector(cond, width, run.sample.seed)
    if seen is not None:
        pooled = seen[:, :width]
    else:
        pooled = torch.zeros(1, width) if cond.pooled is None else cond.pooled.float()
    label = torch.cat([pooled, embedded.to(pooled.device)], dim=1)
    return replace(inputs(cond, run), vectors={"label": label})


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """diffusers' UNet: x (B, 4, H, W), time (B,) in steps of the noise table."""
    for more in given.maps.values():
        x = torch.cat([x, more.to(x)], dim=1)
    label = given.vectors.get("label")
    (output,) = module(
        x.to(run.dtype),
        time.float(),
        given.tokens["context"].values.to(x.device, run.dtype),
        class_labels=None if label is None else label.to(x.device, run.dtype),
        return_dict=False,
    )
    return output


def _inpainting(cond: Cond, run: Run) -> Tensor:
    """Mask (1: to be painted) and latents of the picture with the masked part blanked.

    What the conditioning does not give is taken from the run; without a mask, all is to be painted."""
    x = run.latent
    mask = cond.options.get("concat_mask", run.sample.mask)
    picture = cond.options.get("concat_latent_image")
    if not isinstance(mask, Tensor):
        blank = x.new_tensor(BLANK_LATENT)[:, None, None].expand_as(x)
        return torch.cat([torch.ones_like(x[:, :1]), blank], dim=1)
    given = fit(run.latents.into(picture.to(x)), x) if isinstance(picture, Tensor) else x
    return torch.cat([one_channel(mask, x).round(), given], dim=1)


def image_sizes(options: Mapping[str, object], run: Run) -> dict[str, float]:
    """What a conditioning says of sizes in pixels; unsaid, the picture's own, uncropped."""
    height, width = (side * run.latents.pixels for side in run.latent.shape[-2:])
    known: dict[str, float] = {"height": height, "width": width, "crop_h": 0, "crop_w": 0}
    for name in known:
        known[name] = cast(float, options.get(name, known[name]))
    for name in ("height", "width"):
        known[f"target_{name}"] = cast(float, options.get(f"target_{name}", known[name]))
    return known
