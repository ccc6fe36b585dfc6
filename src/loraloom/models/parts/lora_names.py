"""Module paths of text encoders as LoRA files are read by; `lora.spelling` adds what each trainer puts before
and behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraloom.weights.patch import NameTable, Target

if TYPE_CHECKING:
    from loraloom.models.family import Shapes


def text_aliases(parts: Mapping[str, Shapes]) -> NameTable:
    """Module paths of text encoders by role, "clip_l.text_model.…", → targets."""
    return {
        role + "." + native.removesuffix(".weight").removeprefix(f"{role}.transformer."): Target(native)
        for role, shapes in parts.items()
        for native in shapes
    }
