"""How Stable Diffusion 1.x is called: with the prompt's hidden states alone."""

from __future__ import annotations

from loraloom.models.parts.unet_network import forward, inputs

__all__ = ["forward", "inputs"]
