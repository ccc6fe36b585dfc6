"""From a prompt to what one text encoder reads: chunks of weighted tokens.

CLIP reads 77 positions at a time: a start token, up to 75 tokens, an end token, padding. A longer prompt
becomes several chunks; a part of fewer than eight tokens is not torn apart by the end of a chunk. T5 reads
one sequence of any length, padded to a minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from torch import Tensor

from loraloom.models.encoder import EncoderKind, Tokenizer
from loraloom.models.recipe import Brackets, Use
from loraloom.models.text.prompt import EmbeddingPart, parse_prompt
from loraloom.weights.source import WeightSource

KEEP_TOGETHER = 8
"""A group of words or vectors with at least this many tokens may be split over two chunks."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture in a prompt: (1, H, W, 3) in 0…1."""

    pixels: Tensor


Token: TypeAlias = "int | Tensor | Picture"
"""A number in the encoder's vocabulary, the vector (D,) of an embedding, or a picture."""


@dataclass(frozen=True, slots=True)
class WeightedToken:
    token: Token
    weight: float = 1.0


Chunk: TypeAlias = "tuple[WeightedToken, ...]"
Tokens: TypeAlias = "tuple[Chunk, ...]"
"""A prompt for one encoder."""

FindEmbedding: TypeAlias = Callable[[str], "Sequence[Tensor] | None"]
"""Name of an embedding → its vectors (D,), or None where there is no such embedding."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """How one kind of text encoder is fed.

    length: positions of a chunk, and the chunk is padded to it; None: one chunk of any length.
    brackets: whether they weigh words, only split the text, or are letters.
    blank_is_padding: whether a prompt without words is padding alone where weights move away from it.
    min_padding: pad tokens that always follow the end token. min_length: what a chunk is padded to, and then
        to a multiple of `multiple`.
    """

    tokenizer: Callable[[], Tokenizer]
    start: int | None
    end: int | None
    pad: int
    length: int | None
    min_padding: int = 0
    min_length: int = 0
    multiple: int = 1
    brackets: Brackets = "weigh"
    blank_is_padding: bool = False

    def empty(self, length: int) -> Chunk:
        """What a prompt without words looks like, `length` positions long."""
        marks = () if self.blank_is_padding else (self.start, self.end)
        head = [t for t in marks if t is not None]
        return tuple(WeightedToken(t) for t in (head + [self.pad] * (length - len(head)))[:length])


def rules_for(kind: EncoderKind, use: Use, weights: WeightSource) -> TokenRules:
    """How a recipe feeds an encoder. weights: of the encoder, which may hold its tokenizer."""
    found = kind.vocabulary
    return TokenRules(
        tokenizer=partial(found.tokenizer, weights),
        start=found.start,
        end=found.end,
        pad=found.pad,
        length=found.chunk,
        min_length=use.min_length,
        multiple=use.multiple,
        brackets=use.brackets,
        blank_is_padding=use.blank_is_padding,
    )


@dataclass(frozen=True, slots=True)
class Tokenized:
    """chunks: at least one, also for an empty prompt. unknown: names that no embedding has; they leave no
    token."""

    chunks: Tokens
    unknown: tuple[str, ...] = ()


def tokenize(text: str, rules: TokenRules, find: FindEmbedding) -> Tokenized:
    """A prompt as one encoder reads it."""
    tokenizer = rules.tokenizer()
    groups: list[list[WeightedToken]] = []
    unknown: list[str] = []
    for part in parse_prompt(text, weights=rules.brackets != "letters"):
        weight = part.weight if rules.brackets == "weigh" else 1.0
        if isinstance(part, EmbeddingPart):
            name, vectors = _look_up(part.name, find)
            if vectors is None:
                unknown.append(name)
            else:
                groups.append([WeightedToken(vector, weight) for vector in vectors])
            commas = part.name[len(name) :]
            words = f"{commas} {part.rest}" if commas else part.rest
        else:
            words = part.text
        if words:
            groups.append([WeightedToken(number, weight) for number in tokenizer.encode(words).ids])
    return Tokenized(_chunks(groups, rules), tuple(unknown))


def _look_up(name: str, find: FindEmbedding) -> tuple[str, Sequence[Tensor] | None]:
    """An embedding, and its name without the commas that end the word."""
    vectors = find(name)
    if vectors is not None:
        return name, vectors
    bare = name.rstrip(",")
    return bare, find(bare) if bare != name else None


def _chunks(groups: Sequence[Sequence[WeightedToken]], rules: TokenRules) -> Tokens:
    start = [] if rules.start is None else [WeightedToken(rules.start)]
    end = [] if rules.end is None else [WeightedToken(rules.end)]
    pad = WeightedToken(rules.pad)
    chunks: list[list[WeightedToken]] = [[*start]]
    for group in groups:
        rest = list(group)
        while rest:
            chunk = chunks[-1]
            room = len(rest) if rules.length is None else rules.length - 1 - len(chunk)
            if len(rest) <= room:
                chunk += rest
                break
            if len(group) >= KEEP_TOGETHER:
                chunk += rest[:room]
                rest = rest[room:]
                room = 0
            chunk += [*end, *[pad] * room]
            chunks.append([*start])
    last = chunks[-1]
    last += [*end, *[pad] * rules.min_padding]
    last += [pad] * (max(rules.length or 0, rules.min_length) - len(last))
    last += [pad] * (-len(last) % rules.multiple)
    return tuple(tuple(chunk) for chunk in chunks)
