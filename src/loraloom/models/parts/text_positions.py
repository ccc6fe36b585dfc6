"""How long prompts may be where a library's network has a table of positions (ComfyUI's have no end)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.errors import InputError

if TYPE_CHECKING:
    from loraloom.sampling.types import Cond

LONGEST_TEXT = 1 << 15
"""Tokens, with room for what stands behind them."""

ROOM = 64


def check_length(cond: Cond) -> None:
    """InputError where a prompt is longer than the table."""
    tokens = cond.context.shape[1]
    if tokens > LONGEST_TEXT - ROOM:
        raise InputError(f"the prompt has {tokens} tokens; this model reads at most {LONGEST_TEXT - ROOM}")
