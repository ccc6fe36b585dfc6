"""How Stable Diffusion 2.x is called: with the prompt's hidden states, and for unCLIP with what a picture is
about."""

from __future__ import annotations

from dataclasses import replace

import torch

from loraloom.models.diffusion_network import Run
from loraloom.models.parts import unet_network
from loraloom.models.parts.picture_vectors import picture_vector
from loraloom.models.parts.unet_network import forward
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond

__all__ = ["forward", "inputs"]

MERGED_NOISE = 0.05
"""How noisy the sum of several pictures is made."""


def inputs(cond: Cond, run: Run) -> Inputs:
    given = unet_network.inputs(cond, run)
    if "projection_class_embeddings_input_dim" not in run.config:
        return given
    width = run.number("projection_class_embeddings_input_dim")
    seen = picture_vector(cond, width // 2, run.sample.seed, MERGED_NOISE)
    return replace(given, vectors={"label": torch.zeros(1, width) if seen is None else seen})
