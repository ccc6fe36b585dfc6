"""How Z-Image is called: a list of pictures, a list of prompts, and a time that runs the other way."""

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
    """The prompt's hidden states. Prompts of different lengths are padded by the network itself, each for
    itself, so that rows do not notice each other."""
    check_length(cond)
    return Inputs({"context": Tokens(cond.context, "pad")})


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W), time (B,) in [0, 1], 1 being all noise; the module counts from noise to picture."""
    whole = padded_to_patches(x)
    context = given.tokens["context"].mapped(lambda values: values.to(x.device, run.dtype))
    (output,) = module(list(whole.to(run.dtype)[:, :, None]), 1 - time, context.per_row(), return_dict=False)
    return -torch.stack(output)[:, :, 0, : x.shape[-2], : x.shape[-1]]
