"""How Anima is called: with the prompt's hidden states, and its words once more as T5 numbers them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.models.diffusion_network import Run
from loraloom.models.family import Config
from loraloom.models.library_class import library_class
from loraloom.models.parts.latent_maps import padded_to_patches, patches, unpatched_channels_last
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

TRANSFORMER = "diffusers.models.transformers.transformer_cosmos:CosmosTransformer3DModel"
ADAPTER = "diffusers.models.condition_embedders.condition_embedder_anima:AnimaTextConditioner"


def build(transformer: Config, adapter: Config) -> nn.Module:
    """The transformer, with what makes its context as a part of it."""
    module: nn.Module = library_class(TRANSFORMER)(**transformer)
    module.llm_adapter = library_class(ADAPTER)(**adapter)
    return module


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states, and the numbers and weights of its words for T5, where it says them."""
    told = {name: cond.extras.get(f"t5xxl_{name}") for name in ("ids", "weights")}
    return Inputs(
        {"context": Tokens(cond.context)},
        {name: values for name, values in told.items() if values is not None},
    )


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W), time (B,) in [0, 1].

    Spelled out because diffusers' own forward pass asks torchvision to resize its mask of padding, which is
    all zeros here."""
    whole = padded_to_patches(x)
    tokens, rows, columns = patches(F.pad(whole, (0, 0, 0, 0, 0, 1)))
    states = module.patch_embed.proj(tokens.to(run.dtype))
    context = _context(module.llm_adapter, given, x.device, run.dtype)
    rotary = module.rope(whole[:, :, None])
    changes, embedded = module.time_embed(states, time)
    for block in module.transformer_blocks:
        states = block(states, context, embedded, changes, rotary)
    output = module.proj_out(module.norm_out(states, embedded, changes)).float()
    return unpatched_channels_last(output, rows, columns)[..., : x.shape[-2], : x.shape[-1]]


def _context(adapter: Any, given: Inputs, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B, T, D) a row for each of T5's tokens, times its weight, and zeros up to 512 behind them. A prompt
    without such tokens, which no encoder of Anima's makes, is taken as it stands."""
    states = given.tokens["context"].values.to(device, dtype)
    if "ids" not in given.vectors:
        return states
    rows = adapter(states, given.vectors["ids"].to(device).long())
    weights = given.vectors["weights"].to(rows)
    return rows * F.pad(weights, (0, rows.shape[1] - weights.shape[1]))[..., None]
