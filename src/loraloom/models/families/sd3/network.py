"""How Stable Diffusion 3 is called: with the prompt's hidden states and its pooled vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.diffusion_network import Run
from loraloom.models.parts.latent_maps import padded_to_patches, unpatched_channels_last
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond


def inputs(cond: Cond, run: Run) -> Inputs:
    """InputError for pictures larger than the table of positions."""
    pixels, most = 2 * run.latents.pixels, run.number("pos_embed_max_size")
    if max(-(-side // 2) for side in run.latent.shape[-2:]) > most:
        height, width = (side * run.latents.pixels for side in run.latent.shape[-2:])
        raise InputError(
            f"{width}×{height} pixels are more than this model has positions for: at most {most * pixels} "
            "in either direction"
        )
    width = run.number("pooled_projection_dim")
    pooled = torch.zeros(1, width) if cond.pooled is None else cond.pooled[:, :width]
    return Inputs({"context": Tokens(cond.context, "repeat")}, {"pooled": pooled})


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W), time (B,) in [0, 1000]. Spelled out so that times are embedded unrounded, and so that
    blocks may be left out."""
    whole = padded_to_patches(x)
    rows, columns = (side // 2 for side in whole.shape[-2:])
    states = module.pos_embed(whole.to(run.dtype))
    embedded = module.time_text_embed(time, given.vectors["pooled"].to(x.device, run.dtype))
    context = module.context_embedder(given.tokens["context"].values.to(x.device, run.dtype))
    for block in module.transformer_blocks:
        context, states = block(hidden_states=states, encoder_hidden_states=context, temb=embedded)
    output = module.proj_out(module.norm_out(states, embedded)).float()
    return unpatched_channels_last(output, rows, columns)[..., : x.shape[-2], : x.shape[-1]]
