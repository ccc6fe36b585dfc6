"""How Flux embeds times and guidance (Black Forest Labs, 2024): from float32, before anything is rounded."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from loraloom.models.diffusion_network import Run
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond

TIME_FACTOR = 1000.0
TIME_WIDTH = 256
DEFAULT_GUIDANCE = 3.5


def guidance_of(cond: Cond, run: Run) -> dict[str, Tensor]:
    """{"guidance": (1,)} for networks that are told one, unless the conditioning says that there is none."""
    guidance = cond.options.get("guidance", DEFAULT_GUIDANCE)
    if not run.config["guidance_embeds"] or guidance is None:
        return {}
    return {"guidance": torch.tensor([float(cast(float, guidance))])}


def embed_times(times: Tensor) -> Tensor:
    """(B,) in [0, 1] (or guidance) → (B, 256) float32: cosines, then sines, at geometric frequencies."""
    half = TIME_WIDTH // 2
    steps = torch.arange(half, dtype=torch.float32, device=times.device)
    angles = (times.float() * TIME_FACTOR)[:, None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def embedded(embedders: Any, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """(B, width): times and guidance by a module's `timestep_embedder` and `guidance_embedder`."""
    found = embedders.timestep_embedder(embed_times(time).to(run.dtype))
    if (guidance := given.vectors.get("guidance")) is not None:
        found = found + embedders.guidance_embedder(embed_times(guidance.to(time)).to(run.dtype))
    return found
