"""Names of the blocks of Flux, which several families share (Black Forest Labs, 2024)."""

from __future__ import annotations

DOUBLE, SINGLE = "transformer_blocks.{}.", "single_transformer_blocks.{}."
"""Blocks of two streams and of one, as diffusers calls them."""


def with_mlp(weight: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Rows of a fused weight: query, key and value as wide as the input, the rest the MLP's."""
    width = weight[1]
    return (width, width, width, weight[0] - 3 * width)
