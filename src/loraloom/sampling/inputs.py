"""What one conditioning becomes for one network, by kind, and how several become one batch.

Tokens, vectors, maps and references differ in what may be done with them: tokens may be lengthened, maps are
cut with an area, vectors go as they are. A network's own names for them stand in the keys; nothing here
knows any.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")

Joining: TypeAlias = Literal["repeat", "pad", "equal"]
"""How token sequences of different lengths go into one batch.

repeat: each repeated to their least common multiple, which cross-attention does not notice.
pad: zeros behind the shorter ones; `Tokens.lengths` says where each ends.
equal: not at all; they are evaluated apart.
"""

LONGEST_REPEAT = 4
"""Sequences are repeated up to this many times the shorter one."""


@dataclass(frozen=True, eq=False, slots=True)
class Tokens:
    """values: (B, T, D). lengths: tokens of each row, where some are padding; None: all T."""

    values: Tensor
    joining: Joining = "equal"
    lengths: tuple[int, ...] | None = None

    def joins(self, other: Tokens) -> bool:
        ours, theirs = self.values.shape[1], other.values.shape[1]
        if self.joining != other.joining or self.values.shape[2:] != other.values.shape[2:]:
            return False
        if self.joining == "repeat":
            return math.lcm(ours, theirs) // max(1, min(ours, theirs)) <= LONGEST_REPEAT
        return self.joining == "pad" or ours == theirs

    def per_row(self) -> list[Tensor]:
        """The tokens of each row, (T', D), without padding."""
        lengths = self.lengths or (self.values.shape[1],) * len(self.values)
        return [row[:length] for row, length in zip(self.values, lengths, strict=True)]

    @staticmethod
    def joined(several: Sequence[Tokens]) -> Tokens:
        """Several that join, row after row."""
        joining = several[0].joining
        sizes = [tokens.values.shape[1] for tokens in several]
        if joining == "repeat":
            length = math.lcm(*sizes)
            rows = [t.values.repeat(1, length // t.values.shape[1], 1) for t in several]
            return Tokens(torch.cat(rows), joining)
        if len(set(sizes)) == 1 and all(t.lengths is None for t in several):
            return Tokens(torch.cat([t.values for t in several]), joining)
        longest = max(sizes)
        padded = [torch.nn.functional.pad(t.values, (0, 0, 0, longest - t.values.shape[1])) for t in several]
        lengths = [t.lengths or (t.values.shape[1],) * len(t.values) for t in several]
        return Tokens(torch.cat(padded), joining, tuple(n for row in lengths for n in row))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        return replace(self, values=change(self.values))


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """What a network takes beside x and the time, each by the network's own name for it, with batch 1 or B.

    tokens: what it attends to. vectors: (B, …), used as they are; joined where their shapes are equal.
    maps: (B, C, H, W) of the latent's size, cut with an area. references: latents (B, C, h, w) of any size
        that it looks at beside x, in order. placing: how it puts them among its positions, by its own name;
        joined where equal.
    """

    tokens: Mapping[str, Tokens] = field(default_factory=lambda: dict[str, Tokens]())
    vectors: Mapping[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())
    maps: Mapping[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())
    references: tuple[Tensor, ...] = ()
    placing: str = ""

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """With every tensor changed alike (moved to a device, say)."""
        return Inputs(
            {name: tokens.mapped(change) for name, tokens in self.tokens.items()},
            {name: change(vector) for name, vector in self.vectors.items()},
            {name: change(one) for name, one in self.maps.items()},
            tuple(change(reference) for reference in self.references),
            self.placing,
        )

    def cropped(self, crop: Callable[[Tensor], Tensor]) -> Inputs:
        """With the maps cut to an area."""
        return replace(self, maps={name: crop(one) for name, one in self.maps.items()}) if self.maps else self

    def rows(self, rows: slice) -> Inputs:
        """Some rows of a batch."""
        part = self.mapped(lambda tensor: tensor[rows])
        lengths = {name: None if t.lengths is None else t.lengths[rows] for name, t in part.tokens.items()}
        tokens = {name: replace(t, lengths=lengths[name]) for name, t in part.tokens.items()}
        return replace(part, tokens=tokens)

    def joins(self, other: Inputs) -> bool:
        """Whether both can be in one batch."""
        return (
            self.tokens.keys() == other.tokens.keys()
            and all(tokens.joins(other.tokens[name]) for name, tokens in self.tokens.items())
            and _alike(self.vectors, other.vectors)
            and _alike(self.maps, other.maps)
            and len(self.references) == len(other.references)
            and all(map(_same_kind, self.references, other.references))
            and self.placing == other.placing
        )

    def alike(self, other: Inputs) -> bool:
        """Whether both join and are of equal shapes throughout, padding included."""
        return self.joins(other) and all(
            tokens.values.shape[1] == other.tokens[name].values.shape[1]
            and tokens.lengths == other.tokens[name].lengths
            for name, tokens in self.tokens.items()
        )

    def equals(self, other: Inputs) -> bool:
        """Whether both hold the same values."""

        def tensors(one: Inputs) -> list[Tensor]:
            tokens = (tokens.values for tokens in one.tokens.values())
            return [*tokens, *one.vectors.values(), *one.maps.values(), *one.references]

        return self.alike(other) and all(map(torch.equal, tensors(self), tensors(other)))

    @staticmethod
    def joined(several: Sequence[Inputs], batch: int = 1) -> Inputs:
        """Inputs that join as one, each first repeated to `batch` rows."""
        whole = [one.mapped(lambda tensor: repeated(tensor, batch))._spread(batch) for one in several]
        first = whole[0]
        return Inputs(
            {name: Tokens.joined([one.tokens[name] for one in whole]) for name in first.tokens},
            {name: torch.cat([one.vectors[name] for one in whole]) for name in first.vectors},
            {name: torch.cat([one.maps[name] for one in whole]) for name in first.maps},
            tuple(torch.cat(rows) for rows in zip(*(one.references for one in whole), strict=True)),
            first.placing,
        )

    def _spread(self, batch: int) -> Inputs:
        """With the lengths of its tokens said for as many rows as the tensors have by now."""

        def of(tokens: Tokens) -> Tokens:
            if tokens.lengths is None or len(tokens.lengths) == batch:
                return tokens
            times = -(-batch // len(tokens.lengths))
            return replace(tokens, lengths=(tokens.lengths * times)[:batch])

        return replace(self, tokens={name: of(tokens) for name, tokens in self.tokens.items()})


def _same_kind(one: Tensor, other: Tensor) -> bool:
    return one.shape[1:] == other.shape[1:] and one.dtype == other.dtype


def _alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(_same_kind(one, theirs[name]) for name, one in ours.items())


def in_parts(by_row: Sequence[Part]) -> tuple[Part, ...]:
    """What the fewest equal parts of a batch have that have one thing each. by_row: what each row has."""
    runs = [len([*of]) for _, of in itertools.groupby(by_row)]
    return tuple(by_row[:: math.gcd(*runs)])


def repeated(value: Tensor, batch: int) -> Tensor:
    """A tensor for a whole batch: those rows that there are, starting over when there are too few."""
    if value.shape[0] == batch:
        return value
    return value.repeat(-(-batch // value.shape[0]), *[1] * (value.ndim - 1))[:batch]
