"""Fewer tokens in self-attention: those that are alike count as one (Bolya & Hoffman 2023,
https://arxiv.org/abs/2303.17604).

At the largest pictures that a UNet attends to, most of the time goes into self-attention between all pixels,
and many pixels are nearly alike. One pixel of each square of 2×2 is a destination, chosen at random but the
same every time; of the others, those that are most like a destination (cosine of what attention is given) are
averaged with it. Attention sees the destinations and what is left; what it gives goes back to every pixel
that was averaged. Another picture than without, near it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

RATIO = 0.5
"""Of all tokens, those that are averaged with others; at most three quarters can be."""

_AT_ONCE = 1024
"""Tokens that are compared with all destinations at once: what stays in the processor's cache."""


def has_levels(config: Mapping[str, object]) -> bool:
    """Whether a network is a UNet, which attends to pictures of several sizes."""
    return "down_block_types" in config


@dataclass(frozen=True, slots=True)
class Merging:
    """Which tokens become one, in each row of a batch.

    others, destinations: places (S), (D) among the tokens. target: (B, S) the destination that each of the
    others is most like. merged, kept: (B, R), (B, S - R) which of the others are averaged, and which stay."""

    others: Tensor
    destinations: Tensor
    target: Tensor
    merged: Tensor
    kept: Tensor

    @classmethod
    def of(cls, tokens: Tensor, height: int, width: int, ratio: float) -> Merging:
        """tokens: (B, height · width, C)."""
        destinations = _one_of_each_square(height, width)
        is_other = torch.ones(height * width, dtype=torch.bool)
        is_other[destinations] = False
        others = is_other.nonzero()[:, 0].to(tokens.device)
        destinations = destinations.to(tokens.device)
        best, target = _most_alike(tokens, others, destinations)
        count = min(len(others), int(height * width * ratio))
        order = best.argsort(dim=1, descending=True, stable=True)
        return cls(others, destinations, target, order[:, :count], order[:, count:])

    def merge(self, tokens: Tensor) -> Tensor:
        """(B, T, C) → (B, T - R, C)."""
        others, destinations = tokens[:, self.others], tokens[:, self.destinations]
        into = _for_each(self.target.gather(1, self.merged), tokens)
        given = others.gather(1, _for_each(self.merged, tokens))
        means = destinations.scatter_reduce(1, into, given, "mean", include_self=True)
        return torch.cat([others.gather(1, _for_each(self.kept, tokens)), means], dim=1)

    def spread(self, merged: Tensor) -> Tensor:
        """(B, T - R, C) → (B, T, C): to every token what became of the one that it was averaged into."""
        count = self.kept.shape[1]
        kept, means = merged[:, :count], merged[:, count:]
        made = merged.new_empty(len(merged), len(self.others) + len(self.destinations), merged.shape[2])
        made[:, self.destinations] = means
        averaged = means.gather(1, _for_each(self.target.gather(1, self.merged), merged))
        made.scatter_(1, _for_each(self.others[self.merged], merged), averaged)
        return made.scatter_(1, _for_each(self.others[self.kept], merged), kept)


@dataclass(frozen=True, slots=True)
class TokenMerging:
    """Acts on a diffusers UNet. ratio: of the tokens, those that are averaged with others; 0: none."""

    ratio: float = RATIO

    @contextmanager
    def on(self, module: nn.Module) -> Generator[None]:
        """Merge in the self-attention of the largest level for the time of the context."""
        handles: list[Any] = []
        for picture in _largest_level(module) if self.ratio > 0 else ():
            sizes = _Sizes()
            handles.append(picture.register_forward_pre_hook(sizes.see, with_kwargs=True))
            for block in picture.transformer_blocks:
                merged = _Merged(self.ratio, sizes)
                handles.append(block.attn1.register_forward_pre_hook(merged.before))
                handles.append(block.attn1.register_forward_hook(merged.after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(slots=True)
class _Sizes:
    """Height and width of the picture that a transformer is given."""

    height: int = 0
    width: int = 0

    def see(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        picture: Tensor = given[0] if given else named["hidden_states"]
        self.height, self.width = picture.shape[-2:]


@dataclass(slots=True)
class _Merged:
    """Around one self-attention."""

    ratio: float
    sizes: _Sizes
    merging: list[Merging] = field(default_factory=lambda: list[Merging]())

    def before(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *rest = given
        self.merging = [Merging.of(tokens, self.sizes.height, self.sizes.width, self.ratio)]
        return self.merging[0].merge(tokens), *rest

    def after(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.merging.pop().spread(output)


def _largest_level(unet: Any) -> list[Any]:
    """The transformers over the largest pictures, of both halves of a UNet."""
    halves = (unet.down_blocks, [*unet.up_blocks][::-1])
    for blocks in zip(*halves, strict=True):
        found = [picture for block in blocks for picture in getattr(block, "attentions", ())]
        if found:
            return found
    return []


def _one_of_each_square(height: int, width: int) -> Tensor:
    """Places of one token of each square of 2×2 of a picture, at random, the same for a size."""
    rows, columns = max(1, height // 2), max(1, width // 2)
    chosen = torch.randint(4, (rows, columns), generator=torch.Generator().manual_seed(0))
    row = torch.arange(rows)[:, None] * 2 + (chosen // 2 if height > 1 else 0)
    column = torch.arange(columns) * 2 + (chosen % 2 if width > 1 else 0)
    return (row * width + column).flatten()


def _most_alike(tokens: Tensor, others: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S) twice: how like each of the others is to the destination that is most like it; which it is."""
    directions = tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    ends = directions[:, destinations].transpose(1, 2)
    found = [(directions[:, part] @ ends).max(dim=-1) for part in others.split(_AT_ONCE)]
    return torch.cat([one.values for one in found], 1), torch.cat([one.indices for one in found], 1)


def _for_each(places: Tensor, tokens: Tensor) -> Tensor:
    """(B, N) → (B, N, C): for all channels of tokens."""
    return places[..., None].expand(-1, -1, tokens.shape[-1])
