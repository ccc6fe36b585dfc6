"""Layers on tokens that do the same with less work on a processor: the same numbers but for rounding.

- diffusers' `apply_rotary_emb` turns pairs of channels by a token's position (Su et al. 2021). It makes of
  queries and keys a turned copy, and of both two more in float32: eight passes over memory. A pair is a
  complex number, and to turn it one product.
- Norms square a copy of all values to sum them; a vector's length is had without one, and the copy in float32
  that is needed is changed where it lies.

On other devices, and while gradients are taken, all do what they always did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loraloom.weights.picture_layers import is_free

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object

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
        if not neighbours or not isinstance(freqs_cis, tuple) or not _are_pairs(x, *freqs_cis):
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


def _are_pairs(x: Tensor, *angles: Tensor) -> bool:
    """Whether there is another way, and pairs of neighbours are meant."""
    return (
        is_free(x)
        and x.dim() == 4
        and not torch.compiler.is_compiling()
        and all(a.dtype == torch.float32 and a.device.type == "cpu" and a.dim() == 2 for a in angles)
        and all(torch.equal(a[:, ::2], a[:, 1::2]) for a in angles)
    )


class TokenNorm(_Module):
    """diffusers' RMSNorm, which rounds to the type of its weight before it multiplies by it."""

    if TYPE_CHECKING:
        eps: float
        weight: Tensor | None
        bias: Tensor | None

    def forward(self, hidden_states: Tensor) -> Tensor:
        x, weight = hidden_states, self.weight
        if weight is None or weight.dtype != x.dtype or self.bias is not None or not _may_norm(x):
            return super().forward(x)
        return _normed(x, self.eps).to(x.dtype).mul_(weight)


class PlainNorm(_Module):
    """PyTorch's RMSNorm, which rounds last."""

    if TYPE_CHECKING:
        eps: float | None
        weight: Tensor | None
        normalized_shape: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.eps is None or len(self.normalized_shape) != 1 or not _may_norm(x):
            return super().forward(x)
        made = _normed(x, self.eps)
        return (made if weight is None else made.mul_(weight)).to(x.dtype)


def _may_norm(x: Tensor) -> bool:
    is_real = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return is_real and is_free(x) and not torch.compiler.is_compiling()


def _normed(x: Tensor, eps: float) -> Tensor:
    """x / √(mean of squares + eps) over the last dimension, new and in float32."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    factor = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide * factor if wide is x else wide.mul_(factor)
