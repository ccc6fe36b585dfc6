"""What autoencoders of Wan's kind have in common: how blocks and ends are called there and in diffusers."""

from __future__ import annotations

from collections.abc import Iterator

from loraloom.models.names import Row

RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
MIDDLE = {"0": "resnets.0", "2": "resnets.1"}


def residual(ours: str, theirs: str) -> Iterator[tuple[str, Row]]:
    """A residual block."""
    for native, module in (*RESIDUAL.items(), ("shortcut", "conv_shortcut")):
        yield f"{ours}.{native}", f"{theirs}.{module}"


def ends(half: str) -> Iterator[tuple[str, Row]]:
    """What is alike in both halves: first and last layers, and the middle."""
    yield f"{half}.conv1", f"{half}.conv_in"
    yield f"{half}.head.0", f"{half}.norm_out"
    yield f"{half}.head.2", f"{half}.conv_out"
    yield f"{half}.middle.1.{{}}", f"{half}.mid_block.attentions.0.{{}}"
    for native, module in MIDDLE.items():
        yield from residual(f"{half}.middle.{native}", f"{half}.mid_block.{module}")
