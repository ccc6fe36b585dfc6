"""ComfyUI's prompt syntax: weights, escapes and textual inversions.

`(text)` multiplies the weight by 1.1 and `(text:1.3)` sets it, whatever surrounds it; `\\(` and `\\)` are
plain parentheses; a word `embedding:name` stands for the vectors of an embedding file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

EMPHASIS = 1.1
EMBEDDING = "embedding:"

# Noncharacters of Unicode: no text holds them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words of equal weight."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class EmbeddingPart:
    """The name of an embedding and the words of the same weight that follow it, up to the next embedding."""

    name: str
    rest: str
    weight: float


Part = TextPart | EmbeddingPart


def parse_prompt(text: str) -> list[Part]:
    """The parts of a prompt in order."""
    return [part for piece, weight in _weighted(text) for part in _split_embeddings(piece, weight)]


def _weighted(text: str) -> list[tuple[str, float]]:
    """Pieces of text with their weights, unescaped."""
    escaped = text.replace("\\(", _OPEN).replace("\\)", _CLOSE)
    found: list[tuple[str, float]] = []
    waiting = [(piece, 1.0) for piece in reversed(_pieces(escaped))]
    while waiting:
        piece, weight = waiting.pop()
        if len(piece) >= 2 and piece[0] == "(" and piece[-1] == ")":
            inner, explicit = _explicit_weight(piece[1:-1])
            weight = weight * EMPHASIS if explicit is None else explicit
            waiting.extend((p, weight) for p in reversed(_pieces(inner)))
        else:
            found.append((piece.replace(_OPEN, "(").replace(_CLOSE, ")"), weight))
    return found


def _explicit_weight(inner: str) -> tuple[str, float | None]:
    """`text:1.3` → text and 1.3; anything else stays whole."""
    text, colon, number = inner.rpartition(":")
    if not colon or not text:
        return inner, None
    try:
        weight = float(number)
    except ValueError:
        return inner, None
    return (text, weight) if math.isfinite(weight) else (inner, None)


def _pieces(text: str) -> list[str]:
    """Split at the outermost groups, `(…)` included. An unclosed group is one piece with all that follows;
    a `)` too many leaves the groups after it as plain text, since it puts the count below zero."""
    pieces: list[str] = []
    start = depth = 0
    for match in re.finditer(r"[()]", text):
        if match[0] == "(":
            if depth == 0:
                pieces.append(text[start : match.start()])
                start = match.start()
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                pieces.append(text[start : match.end()])
                start = match.end()
    pieces.append(text[start:])
    return [piece for piece in pieces if piece]


def _split_embeddings(text: str, weight: float) -> list[Part]:
    first, *others = re.split(r"[ \n]" + EMBEDDING, text)
    pieces = [first, *(EMBEDDING + other for other in others)]
    return [_part(piece, weight) for piece in pieces if piece]


def _part(piece: str, weight: float) -> Part:
    if not piece.startswith(EMBEDDING):
        return TextPart(piece, weight)
    name, *rest = piece.removeprefix(EMBEDDING).split() or [""]
    return EmbeddingPart(name, " ".join(rest), weight)
