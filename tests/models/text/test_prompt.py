"""The prompt syntax, also where it is broken."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.models.text.prompt import EmbeddingPart, TextPart, parse_prompt


def weighted(text: str) -> list[tuple[str, float]]:
    return [(p.text, round(p.weight, 6)) for p in parse_prompt(text) if isinstance(p, TextPart)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a b", [("a b", 1.0)]),
        ("(a)", [("a", 1.1)]),
        ("((a))", [("a", 1.21)]),
        ("(a:1.3) b", [("a", 1.3), (" b", 1.0)]),
        ("(a (b:1.5) c:0.8)", [("a ", 0.8), ("b", 1.5), (" c", 0.8)]),
        ("((a:1.5))", [("a", 1.5)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:x)", [("a:x", 1.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(a:-1)", [("a", -1.0)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("[a]", [("[a]", 1.0)]),
        ("()", []),
        (r"\(a\)", [("(a)", 1.0)]),
        (r"(a\):1.2)", [("a)", 1.2)]),
        ("a (b", [("a ", 1.0), ("(b", 1.0)]),
        ("(a (b)", [("a ", 1.1), ("(b", 1.1)]),
        ("((a:1.2)", [("(a", 1.2)]),
        ("a) (b)", [("a) (b)", 1.0)]),
        ("a) (b) ((c))", [("a) (b) (", 1.0), ("c", 1.1), (")", 1.0)]),
    ],
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert weighted(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embedding:x", [EmbeddingPart("x", "", 1.0)]),
        ("a embedding:x, b  c", [TextPart("a", 1.0), EmbeddingPart("x,", "b c", 1.0)]),
        ("a embedding:x<|im_end|>\n b", [TextPart("a", 1.0), EmbeddingPart("x", "<|im_end|>\n b", 1.0)]),
        ("a\nembedding:x\nb", [TextPart("a", 1.0), EmbeddingPart("x", "b", 1.0)]),
        ("(embedding:x:1.2)", [EmbeddingPart("x", "", 1.2)]),
        ("(embedding:x)", [EmbeddingPart("x", "", 1.1)]),
        ("nonembedding:x", [TextPart("nonembedding:x", 1.0)]),
        ("embedding:", [EmbeddingPart("", "", 1.0)]),
    ],
)
def test_embeddings(text: str, expected: list[object]) -> None:
    assert parse_prompt(text) == expected


@given(st.text(alphabet="ab ():\\1.", max_size=60))
def test_nothing_but_syntax_is_lost(text: str) -> None:
    kept = "".join(piece for piece, _ in weighted(text))
    assert [c for c in kept if c in "ab"] == [c for c in text if c in "ab"]


def test_deep_nesting_takes_neither_recursion_nor_quadratic_time() -> None:
    begin = time.perf_counter()
    assert weighted("(" * 50_000 + "a:0.5" + ")" * 50_000) == [("a", 0.5)]
    assert time.perf_counter() - begin < 20
