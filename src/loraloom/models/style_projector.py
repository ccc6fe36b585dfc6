"""USO's projector (Wu et al. 2025): what SigLIP sees of a picture's style as tokens beside a prompt's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = ("high", "mid", "low")


class StyleProjector(nn.Module):
    """States of three depths of a picture encoder, (B, N, D) each → (B, 3 · tokens, width)."""

    def __init__(self, seen: int, tokens: int, reads: int, width: int) -> None:
        super().__init__()
        for level in LEVELS:
            self.add_module(f"{level}_embedding_linear", nn.Sequential(nn.Linear(seen, tokens), nn.SiLU()))
            self.add_module(f"{level}_layer_norm", nn.LayerNorm(reads))
            self.add_module(f"{level}_projection", nn.Linear(reads, width))

    def forward(self, *states: Tensor) -> Tensor:
        """states: of the late, middle and early layers."""
        found: list[Tensor] = []
        for level, seen in zip(LEVELS, states, strict=True):
            fewer = self.get_submodule(f"{level}_embedding_linear")(seen.transpose(1, 2)).transpose(1, 2)
            normed = self.get_submodule(f"{level}_layer_norm")(fewer)
            found.append(self.get_submodule(f"{level}_projection")(normed))
        return torch.cat(found, dim=1)
