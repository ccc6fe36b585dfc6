"""Workflows printed in pages: JSON somewhere in prose, Markdown fences, HTML."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from loraloom.errors import WorkflowError
from loraloom.workflow.api_format import is_api
from loraloom.workflow.graph import JSON
from loraloom.workflow.json_text import read_json
from loraloom.workflow.ui_document import is_ui

_START = re.compile(r'\{\s*["“”„]')
_TELLTALE = re.compile(r'["“”„](?:nodes|class_type)["“”]')
_BRACE = re.compile(r"[{}]")
_TAG = re.compile(r"<(?:/?[a-zA-Z][^<>]*|!--.*?--)>", re.DOTALL)
_BREAK = re.compile(r"<(?:br|/p|/div|/li|/tr)\b[^>]*>", re.IGNORECASE)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+(.+?)\s*#*\s*$")
_FURNITURE = re.compile(
    r"^[\s\W_]*$|^```|^\s*(?:workflow|json|download|copy|ワークフロー|工作流)\s*$", re.IGNORECASE
)
# How much text may be read in vain, in multiples of the page's length: a page of open braces ends here.
_PATIENCE = 16


@dataclass(frozen=True, slots=True)
class Printed:
    """A workflow that a page prints, and the heading or line before it.

    damage: why it cannot be read, if it cannot; `data` is empty then.
    """

    data: dict[str, JSON]
    title: str
    damage: WorkflowError | None = None


@dataclass(frozen=True, slots=True)
class _Region:
    """A part of a page that is JSON, or was meant to be."""

    start: int
    end: int
    data: JSON = None
    damage: WorkflowError | None = None


def printed_workflows(text: str) -> list[Printed]:
    """Every workflow that a page prints, in order, each once; damaged ones with what is wrong."""
    found, regions = _scan(text)
    if "<" in text or "&" in text:
        rest = _without(text, regions)
        plain = html.unescape(_TAG.sub("", _BREAK.sub("\n", rest)))
        more = _scan(plain)[0] if plain != rest else []
        # Nothing in the text: it may stand in an attribute.
        found += more or ([] if found else _scan(html.unescape(rest))[0])
    unique: dict[str, Printed] = {}
    for printed in found:
        unique.setdefault(repr(printed.data) if printed.damage is None else str(printed.damage), printed)
    return list(unique.values())


def _scan(text: str) -> tuple[list[Printed], list[_Region]]:
    found: list[Printed] = []
    regions: list[_Region] = []
    previous_end = 0
    for region in _regions(text):
        before = text[max(previous_end, region.start - 4000) : region.start]
        if region.damage is not None:
            found.append(Printed({}, _title(before), region.damage))
        workflows = list(workflows_in(region.data))
        found.extend(Printed(workflow, _title(before)) for workflow in workflows)
        if region.damage is not None or workflows:
            regions.append(region)
            previous_end = region.end
    return found, regions


def workflows_in(data: JSON) -> Iterator[dict[str, JSON]]:
    """The workflow that a JSON value is, or that it wraps (`{"prompt": …}`, `{"workflow": …}`, lists)."""
    stack: list[tuple[JSON, int]] = [(data, 0)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, dict) and (is_ui(value) or is_api(value)):
            if "inputNode" not in value:
                yield value
        elif isinstance(value, dict) and depth < 4:
            wrapped = [value[key] for key in ("prompt", "workflow") if key in value]
            inner = wrapped[:1] or list(value.values())
            stack.extend((v, depth + 1) for v in reversed(inner))
        elif isinstance(value, list) and depth < 4:
            stack.extend((v, depth + 1) for v in reversed(value))
        elif isinstance(value, str) and depth and value.lstrip().startswith("{") and _TELLTALE.search(value):
            stack.append((read_json(value, "the workflow inside the JSON"), depth + 1))


def _regions(text: str) -> Iterator[_Region]:
    """The outermost JSON objects of a text, and what was a workflow before it was damaged."""
    decoder = json.JSONDecoder(parse_constant=lambda _: None)
    position, patience = 0, _PATIENCE * (len(text) + 1)
    while patience > 0 and (match := _START.search(text, position)) is not None:
        start = match.start()
        try:
            data, position = decoder.raw_decode(text, start)
            yield _Region(start, position, data)
            continue
        except json.JSONDecodeError as error:
            reached = error.pos
        except (RecursionError, ValueError):
            reached = match.end()
        patience -= max(reached - start, 1)
        end = _crude_end(text, start)
        patience -= end - start
        telltale = _TELLTALE.search(text, start, end)
        position = match.end()
        if telltale is not None:
            position = end
            yield _Region(start, end, damage=_damage(text, start, end))


def _damage(text: str, start: int, end: int) -> WorkflowError:
    line = text.count("\n", 0, start) + 1
    what = f"the workflow that starts in line {line}"
    try:
        read_json(text[start:end], what)
    except WorkflowError as error:
        return error
    return WorkflowError(f"{what} is not valid JSON")


def _crude_end(text: str, start: int) -> int:
    """Where the brace at `start` closes if braces in texts are counted too, or the end of the text."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _without(text: str, regions: list[_Region]) -> str:
    parts: list[str] = []
    position = 0
    for region in regions:
        parts.append(text[position : region.start])
        position = region.end
    return "\n".join((*parts, text[position:]))


def _title(before: str) -> str:
    """What a person would call the workflow: the nearest heading, or line that looks like one, before it."""
    fallback = ""
    for line in reversed(before.splitlines()):
        heading = _HEADING.match(line)
        if heading:
            return heading[1][:80]
        text = line.strip()
        if _FURNITURE.match(line):
            continue
        if len(text) <= 60 and text[0] not in "-*•📂│├└" and text[-1] not in ".。!！?？:：,，、;":
            return text
        fallback = fallback or text
    return fallback[:80]
