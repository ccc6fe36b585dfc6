"""What a terminal would act upon is shown as its code."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.visible import visible, visible_json, visible_log

ACTED_UPON = frozenset(
    [*range(9), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x61C, 0x200B, 0x200E, 0x200F]
    + [*range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF]
)


def test_every_such_character_and_no_other() -> None:
    for number in (*range(0x3000), 0xFEFF):
        letter = chr(number)
        code = f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
        assert visible(letter) == (code if number in ACTED_UPON else letter), hex(number)


def test_names_in_any_script_stay_as_they_are() -> None:
    text = "日本語 ünï\tcode\n👩\u200d💻 שלום :fire: [red]"
    assert visible(text) == text


def test_a_log_keeps_colours_and_lines_that_are_printed_anew() -> None:
    assert visible_log("\x1b[31mred\x1b[0m\r50 %\n") == "\x1b[31mred\x1b[0m\r50 %\n"
    assert visible_log("\x1b[2J\x1b]0;t\x07\x9b1A") == "\\x1b[2J\\x1b]0;t\\x07\\x9b1A"


@pytest.mark.parametrize("text", ["a\x1b[31m\u202eb\x9b", "\x7f\u2066", "plain"])
def test_json_keeps_its_value(text: str) -> None:
    written = visible_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(written) == {text: [text]}
    assert visible(written) == written


@given(st.text(st.characters(), max_size=50))
def test_nothing_that_a_terminal_acts_upon_is_left(text: str) -> None:
    shown = visible(text)
    assert not {ord(letter) for letter in shown} & ACTED_UPON
    assert visible(shown) == shown
    assert "\x1b" not in re.sub(r"\x1b\[[0-9;]*m", "", visible_log(text))


@given(
    st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=5)
)
def test_any_json_keeps_its_value_and_holds_nothing_that_is_acted_upon(value: Any) -> None:
    written = visible_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(written) == value
    assert not ACTED_UPON & {ord(letter) for letter in written}
