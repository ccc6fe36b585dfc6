"""Flux.1's transformer as sampling uses it: latents as patches, positions, guidance and the pooled prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.diffusion_network import Run
from loraloom.models.flux_times import embedded, guidance_of
from loraloom.models.latent_maps import PATCH, fit, patches, unpatched
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states and pooled vector, guidance for models with it, and the given picture for
    fill and control models."""
    width = run.number("pooled_projection_dim")
    vectors = {"pooled": torch.zeros(1, width) if cond.pooled is None else cond.pooled[:, :width]}
    vectors |= guidance_of(cond, run)
    extra = run.number("in_channels") // PATCH**2 - run.latents.channels
    maps = {"picture": _given_picture(cond, run, extra)} if extra > 0 else {}
    return Inputs({"context": Tokens(cond.context, "repeat")}, vectors, maps)


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W), time (B,) in [0, 1]. Spelled out because diffusers' own forward pass rounds times and
    guidance to the computing type before it embeds them, which in bfloat16 moves them by up to 0.4 %."""
    whole = torch.cat([x, *(more.to(x) for more in given.maps.values())], dim=1)
    tokens, rows, columns = patches(whole)
    context = module.context_embedder(given.tokens["context"].values.to(x.device, run.dtype))
    condition = _embed(module.time_text_embed, time, given, run)
    states = module.x_embedder(tokens.to(run.dtype))
    rotary = module.pos_embed(positions(context.shape[1], rows, columns, x.device))
    for block in (*module.transformer_blocks, *module.single_transformer_blocks):
        context, states = block(
            hidden_states=states, encoder_hidden_states=context, temb=condition, image_rotary_emb=rotary
        )
    output = module.proj_out(module.norm_out(states, condition)).float()
    return unpatched(output, rows, columns)[..., : x.shape[-2], : x.shape[-1]]


def _embed(embedders: Any, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """(B, width) what the blocks are modulated by: time, guidance and the pooled prompt."""
    pooled = given.vectors["pooled"].to(time.device, run.dtype)
    return embedded(embedders, time, given, run) + embedders.text_embedder(pooled)


def _given_picture(cond: Cond, run: Run, channels: int) -> Tensor:
    """Latents of the picture to start from and, for fill models, the mask as 64 channels of pixels."""
    x, side = run.latent, run.latents.pixels
    picture = cond.options.get("concat_latent_image")
    given = fit(picture.to(x), x) if isinstance(picture, Tensor) else torch.zeros_like(x)
    given = run.latents.into(given)
    if channels <= run.latents.channels:
        return given
    mask = cond.options.get("concat_mask", run.sample.mask)
    mask = (
        mask.to(x).reshape(-1, 1, *mask.shape[-2:]) if isinstance(mask, Tensor) else torch.ones_like(x[:, :1])
    )
    whole = x.new_empty(len(x), 1, x.shape[-2] * side, x.shape[-1] * side)
    return torch.cat([given, F.pixel_unshuffle(fit(mask, whole), side)], dim=1)


def positions(text: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(text + rows · columns, 3): zeros for the text, then (0, row, column) of every patch."""
    grid = torch.zeros(rows, columns, 3, device=device)
    grid[..., 1] = torch.arange(rows, device=device)[:, None]
    grid[..., 2] = torch.arange(columns, device=device)[None]
    return torch.cat([torch.zeros(text, 3, device=device), grid.reshape(-1, 3)])
