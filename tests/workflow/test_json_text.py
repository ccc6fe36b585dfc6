"""JSON that is written can always be read, whatever was put into it."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.workflow.json_text import mended, read_json, write_json

Anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def _same(given: Any, read: Any) -> bool:
    if isinstance(given, float) and not math.isfinite(given):
        return read is None
    if isinstance(given, str):
        return read == "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in given)
    if isinstance(given, list):
        return len(given) == len(read) and all(map(_same, given, read))
    if isinstance(given, dict):
        return all(_same(value, read[mended(key)]) for key, value in given.items())
    return given == read


@settings(max_examples=200, deadline=None)
@given(Anything)
def test_what_is_written_is_read_again_but_for_what_json_cannot_hold(value: Any) -> None:
    text = write_json(value)
    assert "\n" not in text
    text.encode()
    assert _same(value, json.loads(text))
    assert _same(value, read_json(text, "it"))


@settings(max_examples=200, deadline=None)
@given(Anything)
def test_what_was_mended_needs_it_no_more(value: Any) -> None:
    assert mended(mended(value)) == mended(value)
