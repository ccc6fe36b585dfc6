"""Plain values, texts and arithmetic."""

from __future__ import annotations

import pytest
import torch

from loraloom.engine.node import NodeResult, node_types
from loraloom.errors import InputError
from loraloom.nodes import primitives, strings
from loraloom.nodes.expressions import evaluate


def shown(result: NodeResult) -> object:
    return result.ui["text"]


def test_anything_is_shown_as_text() -> None:
    assert shown(primitives.preview_any("text")) == ["text"]
    assert shown(primitives.preview_any(1.5)) == ["1.5"]
    assert shown(primitives.preview_any(None)) == ["None"]
    assert shown(primitives.preview_any({"a": [1]})) == ['{"a": [1]}']
    assert "tensor" in str(shown(primitives.preview_any(torch.zeros(1))))


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ({"switch": True, "on_false": None, "on_true": None}, ["on_true"]),
        ({"switch": False, "on_false": None, "on_true": None}, ["on_false"]),
        ({"switch": True, "on_false": None, "on_true": 5}, []),
        ({"switch": True, "on_false": None}, []),
    ],
)
def test_a_switch_asks_for_one_branch(known: dict[str, object], wanted: list[str]) -> None:
    (kind,) = node_types(primitives.switch)
    assert kind.check_lazy is not None
    assert list(kind.check_lazy(**known)) == wanted  # type: ignore[call-overload]
    assert primitives.switch(True, "no", "yes") == "yes"


@pytest.mark.parametrize(
    ("ratio", "megapixels", "multiple", "size"),
    [
        ("1:1 (Square)", 1.0, 8, (1024, 1024)),
        ("16:9 (Widescreen)", 1.0, 8, (1368, 768)),
        ("9:16 (Portrait Widescreen)", 0.4, 32, (480, 864)),
    ],
)
def test_resolutions(ratio: str, megapixels: float, multiple: int, size: tuple[int, int]) -> None:
    assert primitives.select_resolution(ratio, megapixels, multiple) == size


def test_expressions_of_connected_values() -> None:
    assert primitives.math_expression("floor(a / 32) * 32", **{"values.a": 100}) == (96.0, 96, True)
    assert primitives.math_expression("sum(values) / 2", **{"values.a": 1, "values.b": 2}) == (1.5, 1, True)
    assert primitives.math_expression("a > b", **{"values.a": 1, "values.b": 2}) == (0.0, 0, False)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3 ** 2 // 4 % 5 - -1", 6),
        ("ceil(1.5 * log2(max(a, b))) + 2", 8),
        ("a if a > b else b", 16),
        ("1 < a < 20 and not b > 16", True),
        ("0 or b", 16),
        ("values[-1] + min(values)", 24),
        ("round(2.675, 1) + int('5' == '5')", None),
        ("max(5, round(a * 24)) + (5 - (max(5, round(a * 24)) % 17)) % 17", None),
    ],
)
def test_values_of_expressions(expression: str, value: object) -> None:
    names = {"a": 8, "b": 16, "values": [8, 16]}
    if value is not None:
        assert evaluate(expression, names) == value  # type: ignore[arg-type]
    elif "'" in expression:
        with pytest.raises(InputError, match="not allowed"):
            evaluate(expression, names)  # type: ignore[arg-type]
    else:
        assert evaluate(expression, names) == 192 + (5 - 192 % 17) % 17  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "a +",
        "c",
        "1 / 0",
        "sqrt(-1)",
        "(-8) ** 0.5",
        "10 ** 5000",
        "2 ** 4000 ** 4000",
        "9 ** 4000 * 9 ** 4000 * 9 ** 4000",
        "__import__('os')",
        "().__class__",
        "a.real",
        "[x for x in values]",
        "lambda: 1",
        "values",
        "min(values, key=abs)",
        "values[9]",
        "1" * 3000,
        "-" * 200 + "1",
        "(" * 500 + "1" + ")" * 500,
        "round(1, -999999999)",
        "~a",
        "a << 3",
        "a in values",
        "values + 1",
        "values == values",
        "sum",
        "values[0:1]",
        "min(*values)",
        "{a: 1}",
        "f'{a}'",
        "1j",
        "a[0]",
        "values[0.5]",
        "-(9 ** 4000 * 9 ** 4000 * 9 ** 4000)",
        "huge",
        "a; a",
        "a = 1",
    ],
)
def test_what_is_no_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(InputError):
        evaluate(expression, {"a": 8, "values": [8], "huge": 1 << 30_000})


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        primitives.math_expression("1e308 * 10")


def test_texts() -> None:
    assert strings.concatenate("a", "b", ", ") == "a, b"
    assert strings.substring("abcdef", 1, -1) == "bcde"
    assert strings.length("äöü") == 3
    assert [strings.convert_case("ab cD", m) for m in ("UPPERCASE", "Capitalize", "Title Case")] == [
        "AB CD",
        "Ab cd",
        "Ab Cd",
    ]
    assert strings.trim(" a ", "Left") == "a " and strings.trim(" a ", "Both") == "a"
    assert strings.replace("aXa", "X", "-") == "a-a"
    assert strings.contains("Abc", "aB", False) and not strings.contains("Abc", "aB")
    assert strings.compare(string_a="Abc", string_b="ab", mode="Starts With", case_sensitive=False)
    assert not strings.compare(string_a="Abc", string_b="ab", mode="Equal")


@pytest.mark.parametrize(
    ("mode", "group", "found"),
    [
        ("First Match", 1, "a=1"),
        ("All Matches", 1, "a\nb"),
        ("First Group", 2, "1"),
        ("All Groups", 2, "1\n2"),
        ("First Group", 9, ""),
    ],
)
def test_regular_expressions(mode: str, group: int, found: str) -> None:
    assert (
        strings.regex_extract(string="a=1 b=2", regex_pattern=r"(\w)=(\d)", mode=mode, group_index=group)
        == found
    )


def test_matching_and_replacing() -> None:
    assert strings.regex_match("ABC", "b") and not strings.regex_match("ABC", "b", False)
    assert strings.regex_replace(string="a1b2", regex_pattern=r"\d", replace="-", count=1) == "a-b2"
    with pytest.raises(InputError, match="no regular expression"):
        strings.regex_match("a", "(")
    with pytest.raises(InputError, match="does not fit"):
        strings.regex_replace(string="a", regex_pattern="a", replace=r"\9")
