"""JSON from strangers, read within limits and with errors that point at the place; and written so that every
reader takes it."""

from __future__ import annotations

import json
import math
import re
from typing import cast

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON

MAX_DEPTH = 128
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SMART_QUOTES = "“”„‟″＂"


def read_json(text: str, what: str) -> JSON:
    """The value that a text spells; NaN and infinities (1e999 is one) become null, as in browsers, and halves
    of surrogate pairs, which no UTF-8 can hold, the replacement character.

    Raises WorkflowError with line, column and the likely cause. `what` names the text in it.
    """
    if nesting(text) > MAX_DEPTH:
        raise WorkflowError(f"{what}: JSON nested deeper than {MAX_DEPTH} levels; no workflow is")
    try:
        value = cast("JSON", json.loads(text, parse_constant=lambda _: None, parse_float=_finite))
    except json.JSONDecodeError as error:
        raise WorkflowError(
            f"{what} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}, near "
            f"{text[max(0, error.pos - 20) : error.pos + 20]!r}{_cause(text, error)}"
        ) from error
    except ValueError as error:
        raise WorkflowError(f"{what} is not valid JSON: {error}") from error
    return mended(value) if _SURROGATE_ESCAPE.search(text) else value


def write_json(value: object) -> str:
    """JSON on one line; never fails: what JSON or UTF-8 cannot hold is written as `mended` makes it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError):
        return json.dumps(mended(value), ensure_ascii=False, separators=(",", ":"))
    return text


def mended(value: object, depth: int = 4 * MAX_DEPTH) -> JSON:
    """The value as JSON that can be written: null for NaN, infinities and what is nested too deeply, the
    replacement character for halves of surrogate pairs, its text for what is no JSON."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if depth == 0:
        return None
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return {SURROGATE.sub("\ufffd", str(k)): mended(v, depth - 1) for k, v in items}
    if isinstance(value, list | tuple):
        return [mended(item, depth - 1) for item in cast("list[object]", value)]
    return SURROGATE.sub("\ufffd", str(value))


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def nesting(text: str) -> int:
    """How deep the brackets of a JSON text are nested, without reading it."""
    deepest = depth = 0
    for match in _TOKEN.finditer(text):
        sign = match[0]
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def _cause(text: str, error: json.JSONDecodeError) -> str:
    if any(quote in text[max(0, error.pos - 2) : error.pos + 2] for quote in _SMART_QUOTES):
        return (
            "; the page's typography replaced the straight quotes by curly ones: copy the workflow from the "
            "page's raw text or download button"
        )
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return "; the text ends before the JSON does: it was cut short"
    return ""
