"""JSON from strangers, read within limits and with errors that point at the place."""

from __future__ import annotations

import json
import re
from typing import cast

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON

MAX_DEPTH = 128
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_SMART_QUOTES = "“”„‟″＂"


def read_json(text: str, what: str) -> JSON:
    """The value that a text spells; NaN and infinities become null, as in browsers.

    Raises WorkflowError with line, column and the likely cause. `what` names the text in it.
    """
    if nesting(text) > MAX_DEPTH:
        raise WorkflowError(f"{what}: JSON nested deeper than {MAX_DEPTH} levels; no workflow is")
    try:
        return cast("JSON", json.loads(text, parse_constant=lambda _: None))
    except json.JSONDecodeError as error:
        raise WorkflowError(
            f"{what} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}, near "
            f"{text[max(0, error.pos - 20) : error.pos + 20]!r}{_cause(text, error)}"
        ) from error
    except ValueError as error:
        raise WorkflowError(f"{what} is not valid JSON: {error}") from error


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
