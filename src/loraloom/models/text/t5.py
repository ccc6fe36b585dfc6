"""T5's encoder, version 1.1 (Raffel et al. 2020; gated GELU as in Shazeer 2020): the t5xxl of Flux and SD3.

A module of our own for the reasons that clip.py gives; with 8-bit weights a general one would also round
the activations to 8 bits. Parameters have the names of Hugging Face's files.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.models.text.clip import Encoded

EPSILON = 1e-6
MAX_DISTANCE = 128


@dataclass(frozen=True, slots=True)
class T5Config:
    """inner: width of all heads together. buckets: of the relative positions."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    feed_forward: int
    buckets: int


class T5Text(nn.Module):
    """Embedded tokens (B, T, D) → hidden states of a layer."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.empty_prompts: dict[Hashable, Tensor] = {}
        self.shared = nn.Embedding(config.vocabulary, config.width)
        self.encoder = _Encoder(config)

    @property
    def depth(self) -> int:
        return len(self.encoder.block)

    @property
    def width(self) -> int:
        return self.shared.embedding_dim

    def embed(self, tokens: Tensor) -> Tensor:
        return self.shared(tokens)

    def forward(self, x: Tensor, ends: Tensor, layer: int | None, norm_layer: bool) -> Encoded:
        """As ClipText.forward; nothing is masked (Flux and SD3 attend to the padding too), nothing pooled."""
        del ends
        last = self.depth - 1 if layer is None else self.depth + layer
        blocks = list(self.encoder.block)
        bias = self.encoder.position_bias(x)
        for block in blocks[: last + 1]:
            x = block(x, bias)
        return Encoded(self.encoder.final_layer_norm(x) if layer is None or norm_layer else x)


class _Encoder(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(config, first=index == 0) for index in range(config.layers))
        self.final_layer_norm = _Norm(config.width)

    def position_bias(self, x: Tensor) -> Tensor:
        """What the first block's weights add to the attention of every block."""
        attention = self.block[0].get_submodule("layer.0.SelfAttention")
        return cast(_Attention, attention).position_bias(x)


class _Block(nn.Module):
    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_AttentionLayer(config, first=first), _FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.layer[0](x, bias)
        return x + self.layer[1](x)


class _AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.SelfAttention = _Attention(config, first=first)
        self.layer_norm = _Norm(config.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.SelfAttention(self.layer_norm(x), bias)


class _FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = _GatedGelu(config)
        self.layer_norm = _Norm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.DenseReluDense(self.layer_norm(x))


class _Attention(nn.Module):
    """Attention without scaling, with a bias per head and distance that the first block's weights give."""

    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.width, config.inner, bias=False)
        self.k = nn.Linear(config.width, config.inner, bias=False)
        self.v = nn.Linear(config.width, config.inner, bias=False)
        self.o = nn.Linear(config.inner, config.width, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)

    def position_bias(self, x: Tensor) -> Tensor:
        """(1, heads, T, T) in x's type and place."""
        length = x.shape[1]
        places = torch.arange(length, device=x.device)
        bias = self.relative_attention_bias
        buckets = relative_buckets(places[None, :] - places[:, None], bias.num_embeddings)
        return bias(buckets).to(x).permute(2, 0, 1)[None].contiguous()

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(mixed.transpose(1, 2).flatten(2))


class _GatedGelu(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.width, config.feed_forward, bias=False)
        self.wi_1 = nn.Linear(config.width, config.feed_forward, bias=False)
        self.wo = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class _Norm(nn.Module):
    """Division by the root mean square, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
        return (wide * self.weight.float()).to(x.dtype)


def relative_buckets(distance: Tensor, buckets: int) -> Tensor:
    """The bucket of each signed distance: half for each direction, of which half are exact and half grow
    logarithmically up to MAX_DISTANCE."""
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    far = torch.log(size.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    far = (exact + far.long()).clamp(max=half - 1)
    return torch.where(size < exact, size, far) + (distance > 0).long() * half
