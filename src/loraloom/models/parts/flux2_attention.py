"""Flux.2's attention as diffusers computes it, which also keeps the keys and values of the last tokens, or
attends to those that were kept in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.library_class import library_class
from loraloom.models.parts.kept_tokens import KeptLayer
from loraloom.weights.token_layers import quick

Rotary: TypeAlias = "tuple[Tensor, Tensor]"


@dataclass(frozen=True, slots=True)
class Keeping:
    """layer: what keeps. last: how many tokens at the end are to be kept now; 0: they were, and are not among
    the states."""

    layer: KeptLayer
    last: int = 0


def install(module: Any) -> None:
    """Have every block of a Flux2Transformer2DModel attend in the ways of this file."""
    for block in (*module.transformer_blocks, *module.single_transformer_blocks):
        kind = Joint if hasattr(block.attn, "to_q") else Parallel
        if not isinstance(block.attn.processor, kind):
            block.attn.set_processor(kind())


class Joint:
    """Of blocks with two streams; the text's tokens stand first."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: Rotary | None = None,
        keeping: Keeping | None = None,
    ) -> tuple[Tensor, Tensor]:
        text, states = encoder_hidden_states, hidden_states
        on_text = (attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text))
        on_states = (attn.to_q(states), attn.to_k(states), attn.to_v(states))
        norms = (attn.norm_added_q, attn.norm_added_k), (attn.norm_q, attn.norm_k)
        both = [
            _by_head(*parts, attn, *pair) for parts, pair in zip((on_text, on_states), norms, strict=True)
        ]
        joined = [torch.cat(pair, dim=1) for pair in zip(*both, strict=True)]
        found = _attended(joined[0], joined[1], joined[2], image_rotary_emb, keeping)
        count = text.shape[1]
        return attn.to_out[1](attn.to_out[0](found[:, count:])), attn.to_add_out(found[:, :count])


class Parallel:
    """Of blocks with one stream, beside their MLP."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: Rotary | None = None,
        keeping: Keeping | None = None,
    ) -> Tensor:
        projected = attn.to_qkv_mlp_proj(hidden_states)
        query, key, value, inner = projected.tensor_split([n * attn.inner_dim for n in (1, 2, 3)], dim=-1)
        heads = _by_head(query, key, value, attn, attn.norm_q, attn.norm_k)
        found = _attended(*heads, image_rotary_emb, keeping)
        return attn.to_out(torch.cat([found, attn.mlp_act_fn(inner)], dim=-1))


def _by_head(
    query: Tensor, key: Tensor, value: Tensor, attn: Any, norm_query: Any, norm_key: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, tokens, heads, D) each, normed."""
    query, key, value = (part.unflatten(-1, (-1, attn.head_dim)) for part in (query, key, value))
    return norm_query(query), norm_key(key), value


def _attended(
    query: Tensor, key: Tensor, value: Tensor, rotary: Rotary | None, keeping: Keeping | None
) -> Tensor:
    """(B, tokens, heads · D)."""
    query, key = (_turn()(part, rotary, sequence_dim=1) for part in (query, key))
    if keeping is not None and keeping.last:
        keeping.layer.store(key[:, -keeping.last :], value[:, -keeping.last :])
    elif keeping is not None:
        kept_keys, kept_values = keeping.layer.get()
        key, value = torch.cat([key, kept_keys], dim=1), torch.cat([value, kept_values], dim=1)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


@cache
def _turn() -> Callable[..., Tensor]:
    """diffusers' way to turn pairs by position; looked up once, not at every block of every step."""
    return quick(library_class("diffusers.models.embeddings:apply_rotary_emb"))
