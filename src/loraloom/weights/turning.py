"""Turning pairs of channels by a token's position (Su et al. 2021), with less work on a processor.

diffusers' `apply_rotary_emb` makes of queries and keys a turned copy, and of both two more in float32: eight
passes over memory. A pair is a complex number, and to turn it one product: the same numbers but for rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

NAME = "apply_rotary_emb"
SOURCE = "diffusers.models.embeddings"


def with_quick_turns(layer: nn.Module) -> None:
    """Let the file of a layer's attention turn pairs in the quick way. Nothing where it turns none."""
    file = sys.modules.get(type(getattr(layer, "processor", layer)).__module__)
    plain = getattr(file, NAME, None)
    if plain is not None and plain is getattr(sys.modules.get(SOURCE), NAME, None):
        setattr(file, NAME, quick(plain))


def quick(plain: Callable[..., Any]) -> Callable[..., Any]:
    """diffusers' function, which is called for what is not quick."""

    @wraps(plain)
    def turn(x: Tensor, freqs_cis: Any, *args: Any, **given: Any) -> Any:
        neighbours = not args and given.keys() <= {"sequence_dim"}
        if not neighbours or not isinstance(freqs_cis, tuple) or not _is_free(x, *freqs_cis):
            return plain(x, freqs_cis, *args, **given)
        return turned(x, *freqs_cis, sequence_dim=given.get("sequence_dim", 2))

    return turn


def turned(x: Tensor, cos: Tensor, sin: Tensor, sequence_dim: int) -> Tensor:
    """(B, heads, tokens, D), or tokens and heads the other way round (sequence_dim: of the tokens), and
    (tokens, D) of which pairs of neighbours are alike → the shape and type of x."""
    turns = torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turns = turns[:, None] if sequence_dim == 1 else turns
    made = pairs * turns if x.dtype == torch.float32 else pairs.mul_(turns)
    return torch.view_as_real(made).flatten(-2).to(x.dtype)


def _is_free(x: Tensor, *angles: Tensor) -> bool:
    """Whether there is another way: on processors, without gradients, for what is meant as pairs."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and all(a.dtype == torch.float32 and a.device.type == "cpu" and a.dim() == 2 for a in angles)
        and all(torch.equal(a[:, ::2], a[:, 1::2]) for a in angles)
    )
