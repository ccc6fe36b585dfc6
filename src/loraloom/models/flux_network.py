"""Flux.1's transformer as sampling uses it: latents as patches, positions, guidance and the pooled prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.family import NetworkParts
from loraloom.models.unet_network import fit
from loraloom.sampling.types import Cond, NetworkInputs, Parametrisation, SampleContext

PATCH = 2
"""Latent pixels per token, in both directions."""

TIME_FACTOR = 1000.0
TIME_WIDTH = 256
DEFAULT_GUIDANCE = 3.5


class FluxNetwork:
    """A `sampling.types.Network` around a diffusers Flux transformer.

    The forward pass is spelled out here because diffusers' own rounds times and guidance to the computing
    type before it embeds them, which in bfloat16 moves them by up to 0.4 %.
    """

    def __init__(self, parts: NetworkParts, skipped: frozenset[tuple[str, int]] = frozenset()) -> None:
        self._parts = parts
        self._skipped = skipped
        self._extra_channels = cast(int, parts.config["in_channels"]) // PATCH**2 - parts.latent.channels

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

    def skipping(self, blocks: tuple[tuple[str, int], ...]) -> FluxNetwork:
        """This network without some of its blocks: ("double", 7), ("single", 3) …"""
        return FluxNetwork(self._parts, frozenset(blocks))

    def inputs(self, cond: Cond, context: SampleContext) -> NetworkInputs:
        """context, "y" (1, P), "guidance" (1,) for models with it, "concat" for fill and control models."""
        width = cast(int, self._parts.config["pooled_projection_dim"])
        inputs = {
            "context": cond.context,
            "y": torch.zeros(1, width) if cond.pooled is None else cond.pooled[:, :width],
        }
        if self._parts.config["guidance_embeds"]:
            guidance = cond.options.get("guidance", DEFAULT_GUIDANCE)
            if guidance is not None:
                inputs["guidance"] = torch.tensor([float(cast(float, guidance))])
        if self._extra_channels > 0:
            inputs["concat"] = self._given_picture(cond, context)
        return inputs

    def __call__(self, x: Tensor, timestep: Tensor, inputs: NetworkInputs) -> Tensor:
        module: Any = self._parts.module()
        with self._parts.around(module):
            return self._run(module, x, timestep, inputs)

    def _run(self, module: Any, x: Tensor, timestep: Tensor, inputs: NetworkInputs) -> Tensor:
        dtype = self._parts.dtype
        given = inputs.get("concat")
        tokens, rows, columns = patches(x if given is None else torch.cat([x, given.to(x)], dim=1))
        context = module.context_embedder(inputs["context"].to(x.device, dtype))
        embedded = self._embed(module.time_text_embed, timestep, inputs, x.device)
        states = module.x_embedder(tokens.to(dtype))
        rotary = module.pos_embed(positions(context.shape[1], rows, columns, x.device))
        for block in self._blocks(module):
            context, states = block(
                hidden_states=states, encoder_hidden_states=context, temb=embedded, image_rotary_emb=rotary
            )
        output = module.proj_out(module.norm_out(states, embedded)).float()
        return unpatched(output, rows, columns)[..., : x.shape[-2], : x.shape[-1]]

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return (latent - self._parts.latent.shift) * self._parts.latent.scale

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return latent / self._parts.latent.scale + self._parts.latent.shift

    def _blocks(self, module: Any) -> Iterator[Any]:
        kinds = (("double", module.transformer_blocks), ("single", module.single_transformer_blocks))
        for kind, blocks in kinds:
            for number, block in enumerate(blocks):
                if (kind, number) not in self._skipped:
                    yield block

    def _embed(self, embedders: Any, timestep: Tensor, inputs: NetworkInputs, device: torch.device) -> Tensor:
        """(B, width) what the blocks are modulated by: time, guidance and the pooled prompt."""
        dtype = self._parts.dtype
        embedded = embedders.timestep_embedder(embed_times(timestep.to(device)).to(dtype))
        if "guidance" in inputs:
            guidance = embed_times(inputs["guidance"].to(device))
            embedded = embedded + embedders.guidance_embedder(guidance.to(dtype))
        return embedded + embedders.text_embedder(inputs["y"].to(device, dtype))

    def _given_picture(self, cond: Cond, context: SampleContext) -> Tensor:
        """Latents of the picture to start from and, for fill models, the mask as 64 channels of pixels."""
        x = context.latent
        picture = cond.options.get("concat_latent_image")
        given = fit(picture.to(x), x) if isinstance(picture, Tensor) else torch.zeros_like(x)
        given = self.process_latent_in(given)
        if self._extra_channels <= self.latent_channels:
            return given
        mask = cond.options.get("concat_mask", context.mask)
        mask = (
            mask.to(x).reshape(-1, 1, *mask.shape[-2:])
            if isinstance(mask, Tensor)
            else torch.ones_like(x[:, :1])
        )
        whole = x.new_empty(len(x), 1, x.shape[-2] * 8, x.shape[-1] * 8)
        return torch.cat([given, F.pixel_unshuffle(fit(mask, whole), 8)], dim=1)


def embed_times(times: Tensor) -> Tensor:
    """(B,) in [0, 1] (or guidance) → (B, 256) float32: cosines, then sines, at geometric frequencies."""
    half = TIME_WIDTH // 2
    steps = torch.arange(half, dtype=torch.float32, device=times.device)
    angles = (times.float() * TIME_FACTOR)[:, None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def patches(x: Tensor) -> tuple[Tensor, int, int]:
    """(B, C, H, W) → (B, rows · columns, 4C) with rows and columns; odd sizes go on from the other side."""
    height, width = x.shape[-2:]
    if height % PATCH or width % PATCH:
        x = F.pad(x, (0, width % PATCH, 0, height % PATCH), mode="circular")
    batch, channels, height, width = x.shape
    rows, columns = height // PATCH, width // PATCH
    tokens = x.reshape(batch, channels, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, rows * columns, channels * PATCH**2), rows, columns


def unpatched(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `patches`, before the cut to the original size."""
    batch, _, width = tokens.shape
    channels = width // PATCH**2
    x = tokens.reshape(batch, rows, columns, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, channels, rows * PATCH, columns * PATCH)


def positions(text: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(text + rows · columns, 3): zeros for the text, then (0, row, column) of every patch."""
    grid = torch.zeros(rows, columns, 3, device=device)
    grid[..., 1] = torch.arange(rows, device=device)[:, None]
    grid[..., 2] = torch.arange(columns, device=device)[None]
    return torch.cat([torch.zeros(text, 3, device=device), grid.reshape(-1, 3)])
