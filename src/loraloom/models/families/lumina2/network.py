"""How Lumina 2 is called: with the prompt's hidden states and a mask, and a time that runs the other way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loraloom.models.diffusion_network import Run
from loraloom.models.parts.latent_maps import padded_to_patches
from loraloom.models.parts.text_positions import check_length
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond


def inputs(cond: Cond, run: Run) -> Inputs:
    check_length(cond)
    return Inputs({"context": Tokens(cond.context, "pad")})


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W), time (B,) in [0, 1], 1 being all noise; the module counts from noise to picture."""
    whole, context = padded_to_patches(x), given.tokens["context"]
    longest = context.values.shape[1]
    lengths = torch.tensor(context.lengths or [longest] * len(x), device=x.device)
    mask = torch.arange(longest, device=x.device) < lengths[:, None]
    (output,) = module(
        whole.to(run.dtype), 1 - time, context.values.to(x.device, run.dtype), mask, return_dict=False
    )
    return -output[..., : x.shape[-2], : x.shape[-1]]
