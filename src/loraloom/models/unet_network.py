"""Stable Diffusion's UNet as sampling uses it: conditioning in, network output out.

The sizes that SDXL is told (Podell et al. 2023, §2.2) and the inpainting channels (Rombach et al. 2022)
become network inputs here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.family import NetworkParts
from loraloom.sampling.types import Cond, NetworkInputs, Parametrisation, SampleContext

SIZE_WIDTH = 256
"""Width of the embedding of each number that SDXL is told."""

BLANK_LATENT = (0.8223, -0.6876, 0.6364, 0.1380)
"""A grey picture as the network sees its latents: what inpainting is given without a picture."""


class UNetNetwork:
    """A `sampling.types.Network` around a diffusers UNet."""

    def __init__(self, parts: NetworkParts) -> None:
        self._parts = parts
        self._extra_channels = cast(int, parts.config["in_channels"]) - parts.latent.channels

    @property
    def parametrisation(self) -> Parametrisation:
        return self._parts.parametrisation

    @property
    def latent_channels(self) -> int:
        return self._parts.latent.channels

    @property
    def dtype_name(self) -> str:
        return str(self._parts.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        return self._parts.device

    def inputs(self, cond: Cond, context: SampleContext) -> NetworkInputs:
        """context, "y" (1, Y) for models that are told sizes, "concat" (B, C', H, W) for inpainting."""
        inputs = {"context": cond.context}
        if self._extra_channels:
            inputs["concat"] = self._inpainting(cond, context)
        label = self._label(cond, context)
        if label is not None:
            inputs["y"] = label
        return inputs

    def __call__(self, x: Tensor, timestep: Tensor, inputs: NetworkInputs) -> Tensor:
        dtype, device = self._parts.dtype, x.device
        module = self._parts.module()
        if "concat" in inputs:
            x = torch.cat([x, inputs["concat"].to(x)], dim=1)
        label = inputs.get("y")
        with self._parts.around(module):
            (output,) = module(
                x.to(dtype),
                timestep.to(device, torch.float32),
                inputs["context"].to(device, dtype),
                class_labels=None if label is None else label.to(device, dtype),
                return_dict=False,
            )
        return output.float()

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return (latent - self._parts.latent.shift) * self._parts.latent.scale

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return latent / self._parts.latent.scale + self._parts.latent.shift

    def _label(self, cond: Cond, context: SampleContext) -> Tensor | None:
        """(1, Y) what the network is told besides the prompt; None where it is told nothing."""
        return None

    def _inpainting(self, cond: Cond, context: SampleContext) -> Tensor:
        """Mask (1: to be painted) and latents of the picture with the masked part blanked.

        What the conditioning does not give is taken from the run; without a mask, all is to be painted."""
        x = context.latent
        mask = cond.options.get("concat_mask", context.mask)
        picture = cond.options.get("concat_latent_image")
        if not isinstance(mask, Tensor):
            blank = x.new_tensor(BLANK_LATENT)[:, None, None].expand_as(x)
            return torch.cat([torch.ones_like(x[:, :1]), blank], dim=1)
        given = fit(self.process_latent_in(picture.to(x)), x) if isinstance(picture, Tensor) else x
        return torch.cat([one_channel(mask, x).round(), given], dim=1)


class SdxlNetwork(UNetNetwork):
    """The UNet that is told the picture's size, crop and target size beside the pooled prompt."""

    def _label(self, cond: Cond, context: SampleContext) -> Tensor | None:
        sizes = image_sizes(cond.options, context.latent)
        names = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
        return self._told(cond, [sizes[name] for name in names])

    def _told(self, cond: Cond, numbers: list[float]) -> Tensor:
        embedded = torch.cat([embed_number(number, SIZE_WIDTH) for number in numbers])[None]
        width = cast(int, self._parts.config["projection_class_embeddings_input_dim"]) - embedded.shape[1]
        pooled = torch.zeros(1, width) if cond.pooled is None else cond.pooled.float()
        return torch.cat([pooled, embedded.to(pooled.device)], dim=1)


class RefinerNetwork(SdxlNetwork):
    """SDXL's refiner: size, crop and an aesthetic score."""

    def _label(self, cond: Cond, context: SampleContext) -> Tensor | None:
        sizes = image_sizes(cond.options, context.latent)
        default = 2.5 if context.role == "negative" else 6.0
        score = cast(float, cond.options.get("aesthetic_score", default))
        numbers = [sizes[name] for name in ("height", "width", "crop_h", "crop_w")]
        return self._told(cond, [*numbers, score])


def image_sizes(options: Mapping[str, object], x: Tensor) -> dict[str, float]:
    """What a conditioning says of sizes in pixels; unsaid, the picture's own, uncropped."""
    known: dict[str, float] = {"height": x.shape[-2] * 8, "width": x.shape[-1] * 8, "crop_h": 0, "crop_w": 0}
    for name in known:
        known[name] = cast(float, options.get(name, known[name]))
    for name in ("height", "width"):
        known[f"target_{name}"] = cast(float, options.get(f"target_{name}", known[name]))
    return known


def embed_number(number: float, width: int) -> Tensor:
    """(width,) cosines, then sines, of a number at geometric frequencies from 1 to 1/10000."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float32) / (width // 2))
    angles = torch.tensor(number, dtype=torch.float32) * frequencies
    return torch.cat([angles.cos(), angles.sin()])


def one_channel(mask: Tensor, x: Tensor) -> Tensor:
    """A mask of any form (…, H', W') as (B, 1, H, W), for latents x."""
    if mask.dim() == x.dim():
        mask = mask[:, :1]
    return fit(mask.reshape(-1, 1, *mask.shape[-2:]).to(x), x)


def fit(values: Tensor, x: Tensor) -> Tensor:
    """(B', C, H', W') to the size and batch of x: the centre of the same proportions, batch by repeating."""
    height, width = x.shape[-2:]
    old_height, old_width = values.shape[-2:]
    if (old_height, old_width) != (height, width):
        left = top = 0
        if old_width * height > old_height * width:
            left = round((old_width - old_height * width / height) / 2)
        else:
            top = round((old_height - old_width * height / width) / 2)
        values = values[..., top : old_height - top, left : old_width - left]
        values = F.interpolate(values, (height, width), mode="bilinear")
    if len(values) < len(x):
        values = values.repeat(math.ceil(len(x) / len(values)), 1, 1, 1)
    return values[: len(x)]
