"""ComfyUI's prompt syntax: weights, escapes and textual inversions.

`(text)` multiplies the weight by 1.1 and `(text:1.3)` sets it, whatever surrounds it; `\\(` and `\\)` are
plain parentheses; a word `embedding:name` stands for the vectors of an embedding file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

EMPHASIS = 1.1
EMBEDDING = "embedding:"
MARK = "<|"
"""What begins the marks of a chat ("<|im_end|>"), which no embedding's name holds."""

_PARENTHESIS = re.compile(r"[()]")

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


def parse_prompt(text: str, *, weights: bool = True) -> list[Part]:
    """The parts of a prompt in order. weights: whether brackets weigh words; else they are letters."""
    pieces = _weighted(text) if weights else [(text.replace("\\(", "(").replace("\\)", ")"), 1.0)]
    return [part for piece, weight in pieces for part in _split_embeddings(piece, weight)]


def _weighted(text: str) -> list[tuple[str, float]]:
    """Pieces of text with their weights, unescaped. Nothing is read twice, however deep it is nested."""
    escaped = text.replace("\\(", _OPEN).replace("\\)", _CLOSE)
    closing = _closing(escaped)
    found: list[tuple[str, float]] = []
    waiting = [(begin, end, 1.0) for begin, end in reversed(_pieces(escaped, 0, len(escaped), closing))]
    while waiting:
        begin, end, weight = waiting.pop()
        if end - begin >= 2 and escaped[begin] == "(" and escaped[end - 1] == ")":
            inner_end, explicit = _explicit_weight(escaped, begin + 1, end - 1)
            weight = weight * EMPHASIS if explicit is None else explicit
            inner = _pieces(escaped, begin + 1, inner_end, closing)
            waiting.extend((*piece, weight) for piece in reversed(inner))
        else:
            found.append((escaped[begin:end].replace(_OPEN, "(").replace(_CLOSE, ")"), weight))
    return found


def _closing(text: str) -> dict[int, int]:
    """Where the group that begins at a parenthesis ends (the place of its last character)."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for match in _PARENTHESIS.finditer(text):
        if match[0] == "(":
            opened.append(match.start())
        elif opened:
            found[opened.pop()] = match.start()
    return found


def _explicit_weight(text: str, begin: int, end: int) -> tuple[int, float | None]:
    """`words:1.3` → where the words end, and 1.3; anything else is words."""
    colon = text.rfind(":", begin, end)
    if colon <= begin:
        return end, None
    try:
        weight = float(text[colon + 1 : end])
    except ValueError:
        return end, None
    return (colon, weight) if math.isfinite(weight) else (end, None)


def _pieces(text: str, begin: int, end: int, closing: Mapping[int, int]) -> list[tuple[int, int]]:
    """Split at the outermost groups, `(…)` included. An unclosed group is one piece with all that follows;
    each `)` too many takes one `(` after it that would have begun a group."""
    pieces: list[tuple[int, int]] = []
    excess, place = 0, begin
    while match := _PARENTHESIS.search(text, place, end):
        place = match.end()
        if match[0] == ")":
            excess += 1
        elif excess:
            excess -= 1
        else:
            close = closing.get(match.start(), end)
            place = close + 1 if close < end else end
            pieces += [(begin, match.start()), (match.start(), place)]
            begin = place
    pieces.append((begin, end))
    return [(first, last) for first, last in pieces if first < last]


def _split_embeddings(text: str, weight: float) -> list[Part]:
    first, *others = re.split(r"[ \n]" + EMBEDDING, text)
    pieces = [first, *(EMBEDDING + other for other in others)]
    return [_part(piece, weight) for piece in pieces if piece]


def _part(piece: str, weight: float) -> Part:
    if not piece.startswith(EMBEDDING):
        return TextPart(piece, weight)
    body = piece.removeprefix(EMBEDDING)
    name, *rest = body.split() or [""]
    if MARK in name:  # the template goes on right behind the name
        name, _, _ = body.partition(MARK)
        return EmbeddingPart(name.strip(), body[len(name) :], weight)
    return EmbeddingPart(name, " ".join(rest), weight)
