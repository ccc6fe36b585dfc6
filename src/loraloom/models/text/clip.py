"""CLIP's text encoder (Radford et al. 2021): CLIP-L, and OpenCLIP's H and bigG under the same names.

A module of our own, for what a general one does not offer: it takes vectors in place of token numbers
(embeddings), returns any layer, and never looks at the type its weights are stored in. Parameters have
the names of Hugging Face's files. Widths, depths and head counts follow from the shapes of the weights.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """projection: width of the projected pooled output, None without one. quick_gelu: OpenAI's models use
    x·sigmoid(1.702x), OpenCLIP's the exact GELU."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    inner: int
    quick_gelu: bool
    projection: int | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """hidden: (B, T, D) of the layer asked for. pooled: (B, D), the end token's normed last state.
    projected: (B, P). mask: (B, T) 0 where padding is, where that is to be said. pictures: the first row of
    each picture's and their number."""

    hidden: Tensor
    pooled: Tensor | None = None
    projected: Tensor | None = None
    mask: Tensor | None = None
    pictures: tuple[tuple[int, int], ...] = ()


class ClipText(nn.Module):
    """Embedded tokens (B, T, D) → hidden states of a layer, and the pooled output.

    empty_prompts: what the empty prompt gives, kept by whoever encodes."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.empty_prompts: dict[Hashable, Tensor] = {}
        self.text_model = _TextModel(config)
        self.text_projection = (
            None if config.projection is None else nn.Linear(config.width, config.projection, bias=False)
        )

    @property
    def depth(self) -> int:
        return len(self.text_model.encoder.layers)

    @property
    def width(self) -> int:
        return self.text_model.embeddings.token_embedding.embedding_dim

    def embed(self, tokens: Tensor) -> Tensor:
        """(…,) token numbers → (…, D) vectors, without positions."""
        return self.text_model.embeddings.token_embedding(tokens)

    def forward(self, x: Tensor, ends: Tensor, layer: int | None, norm_layer: bool) -> Encoded:
        """ends: (B,) position of each row's end token. layer: counted from the end (-1 is the last), None:
        the last, with the final norm. norm_layer: whether another layer's states get the final norm too."""
        model = self.text_model
        x = x + model.embeddings.position_embedding.weight[: x.shape[1]].to(x)
        wanted = None if layer is None else self.depth + layer
        hidden = x
        for index, block in enumerate(model.encoder.layers):
            x = block(x)
            if index == wanted:
                hidden = model.final_layer_norm(x) if norm_layer else x
        last = model.final_layer_norm(x)
        pooled = last[torch.arange(len(last), device=last.device), ends]
        projected = pooled if self.text_projection is None else self.text_projection(pooled)
        return Encoded(last if wanted is None else hidden, pooled, projected)


class _TextModel(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config)
        self.final_layer_norm = nn.LayerNorm(config.width)


class _Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)


class _Layers(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.layers))


class _Block(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.self_attn = _Attention(config.width)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.inner)
        self.fc2 = nn.Linear(config.inner, config.width)
        self.quick_gelu = config.quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x))
