"""Anything that holds workflows → the workflows in it.

Editor (UI) and API JSON, pictures that carry a workflow, and any text, Markdown or HTML with workflows
printed in it, from a file, from standard input, or given directly.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from loraloom.errors import InputError, WorkflowError
from loraloom.workflow.api_format import parse_api, without_comments
from loraloom.workflow.graph import JSON, Graph
from loraloom.workflow.json_text import SURROGATE, read_json
from loraloom.workflow.pages import Printed, printed_workflows, workflows_in
from loraloom.workflow.pictures import is_picture, picture_texts
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.ui_document import is_ui
from loraloom.workflow.ui_format import Queueing, model_references, parse_ui

MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """One workflow of a source.

    index: its place in the source, from 1.
    title: the heading before it, where there is one.
    ui: the editor's workflow that a picture carries beside the API prompt.
    damage: why it cannot be read, if it cannot; `graph` raises it.
    other: the same workflow in the picture's other text, for where this one cannot be read or run.
    notes: what the reader wants the user to know.
    """

    index: int
    title: str
    format: Literal["ui", "api"]
    origin: str
    data: dict[str, JSON]
    ui: dict[str, JSON] | None = None
    damage: WorkflowError | None = None
    other: Found | None = None
    notes: tuple[str, ...] = ()

    @property
    def node_count(self) -> int:
        nodes = self.data.get("nodes") if self.format == "ui" else self.data
        return len(nodes) if isinstance(nodes, list | dict) else 0

    def graph(
        self, schemas: Mapping[str, NodeSchema] | None = None, queueing: Queueing | None = None
    ) -> Graph:
        """The workflow as a graph, of the other text where this one cannot be read.

        Raises WorkflowError that names the source.
        schemas: the classes to read widget values by (ComfyUI's core classes if not given).
        queueing: chance and clock for `{a|b}` and dates; fresh ones if not given.
        """
        if self.damage is not None:
            raise WorkflowError(f"{self.origin}: {self.damage}") from self.damage
        try:
            graph = self._parsed(schemas, queueing)
        except WorkflowError as error:
            if self.other is None:
                raise WorkflowError(f"{self.origin}: {error}") from error
            graph = self.other.graph(schemas, queueing)
            note = f"the picture's text 'prompt' cannot be read ({error}): its text 'workflow' is used"
            graph = replace(graph, notes=(note, *graph.notes))
        return replace(graph, notes=(*self.notes, *graph.notes))

    def _parsed(self, schemas: Mapping[str, NodeSchema] | None, queueing: Queueing | None) -> Graph:
        if self.format == "ui":
            return parse_ui(self.data, schemas=schemas, queueing=queueing, origin=self.origin)
        nodes, comments = without_comments(self.data)
        graph = parse_api(nodes, ui=self.ui, origin=self.origin)
        if comments:
            said = ", ".join(repr(key[:40]) for key in comments[:8])
            graph = replace(graph, notes=(f"{said} in the file: no node, left out",))
        return replace(graph, models=model_references(self.ui)) if self.ui else graph


def read_source(source: str | Path | bytes, *, stdin: BinaryIO | None = None) -> list[Found]:
    """Every workflow in a source, at least one.

    source: a path, `-` for standard input, the bytes of a file, or the text itself (a str that has line
        breaks or begins like JSON or HTML).

    Raises InputError if there is no such file or nothing in it is a workflow.
    """
    if isinstance(source, bytes):
        return workflows_of(source, "the given bytes")
    if isinstance(source, str) and ("\n" in source or source.lstrip()[:1] in ("{", "[", "<")):
        return _in_text(source, "the given text")
    if source == "-":
        data = (stdin or sys.stdin.buffer).read(MAX_BYTES + 1)
        return workflows_of(data, "standard input")
    path = Path(source)
    return workflows_of(_read_file(path), path.name)


def select(found: list[Found], which: str | None) -> list[Found]:
    """The workflows that `--workflow` chooses: a number from 1, `all`, or the only one if not given.

    Raises InputError with the list of what there is.
    """
    if which == "all" or (which is None and len(found) == 1):
        return found
    if which is not None and which.isascii() and which.isdigit() and 1 <= int(which[:9]) <= len(found):
        return [found[int(which) - 1]]
    listing = "".join(f"\n  {f.index}  {f.title or '(no title)'}  ({f.node_count} nodes)" for f in found)
    origin = found[0].origin.partition(", workflow")[0]
    if which is None:
        raise InputError(f"{origin} holds {len(found)} workflows; choose with --workflow N or all:{listing}")
    raise InputError(f"{origin} has no workflow {which!r}; --workflow takes a number or all:{listing}")


def workflows_of(data: bytes, name: str) -> list[Found]:
    """Every workflow in the bytes of a file; `name` is what messages call it."""
    if len(data) > MAX_BYTES:
        raise InputError(f"{name} is larger than {MAX_BYTES >> 20} MB; no workflow is")
    if is_picture(data):
        return _in_picture(data, name)
    text, failure = _text(data, name)
    found = _in_text(text, name)
    if failure is not None and any("\ufffd" in json.dumps(f.data, ensure_ascii=False) for f in found):
        raise InputError(f"{name} is not UTF-8 text: {_other_encodings(data, failure)}") from failure
    return found


def _read_file(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; expected a workflow, a picture or a page")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{str(path)[:200]!r} cannot be read: {reason}") from error


_CHARSET = re.compile(
    rb"<(?:meta|\?xml)\b[^>]{0,200}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w-]{2,40})", re.IGNORECASE
)
_OTHER_ENCODINGS = ("cp932", "gb18030", "big5", "euc_kr", "euc_jp", "cp1251", "cp1252")


def _text(data: bytes, name: str) -> tuple[str, UnicodeDecodeError | None]:
    """The text of a file: UTF-8, UTF-16 with its mark, or what a page says of itself; and what is wrong where
    it is none of these (such bytes are U+FFFD then)."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16"), None
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name} is damaged UTF-16 text: {error.reason} at byte {error.start}"
            ) from error
    if b"\0" in data[:4096]:
        is_wide = data[:2].count(0) == data[2:4].count(0) == 1
        hint = "; it looks like UTF-16 text without its mark: save it as UTF-8" if is_wide else ""
        hint = "; it looks like a model file" if data[8:10] == b'{"' else hint
        raise InputError(
            f"{name} is neither text nor a PNG, WebP or JPEG picture{hint}; expected a workflow (JSON), a "
            "picture that carries one, or a page that prints one"
        )
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        if said := _CHARSET.search(data, 0, 4096):
            with suppress(LookupError, UnicodeError):
                return data.decode(said[1].decode()), None
        return data.decode("utf-8-sig", "replace"), error


def _other_encodings(data: bytes, failure: UnicodeDecodeError) -> str:
    """What a file might be that is not UTF-8, and what its first strange text reads like then."""
    start = data.rfind(b'"', 0, failure.start) + 1
    end = data.find(b'"', failure.start)
    strange = data[start : end if 0 <= end < start + 200 else start + 200]
    readings: list[str] = []
    for encoding in _OTHER_ENCODINGS:
        with suppress(UnicodeError):
            data.decode(encoding)
            readings.append(f"{strange.decode(encoding)[:30]!r} in {encoding}")
    line = data.count(b"\n", 0, failure.start) + 1
    guess = f"; it would read {' or '.join(readings[:4])}" if readings else ""
    return f"byte 0x{data[failure.start]:02x} in line {line}{guess}. Save it as UTF-8"


def _in_picture(data: bytes, name: str) -> list[Found]:
    try:
        texts = picture_texts(data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    values: dict[str, dict[str, JSON]] = {}
    failures: dict[str, WorkflowError] = {}
    for key in ("prompt", "workflow"):
        if key in texts:
            try:
                value = next(workflows_in(read_json(texts[key], f"its text {key!r}")), None)
            except WorkflowError as error:
                failures[key] = error
                continue
            if value is not None:
                values[key] = value
    if values:
        return [_of_texts(values, failures, name, texts)]
    for text in texts.values():
        printed = printed_workflows(text)
        if printed:
            return _numbered(printed, name)
    if failures:
        error = next(iter(failures.values()))
        raise WorkflowError(f"{name}: {error}") from error
    there = ", ".join(texts) or "no texts at all"
    hint = " (the settings of another program, not a workflow)" if "parameters" in texts else ""
    raise InputError(
        f"{name} is a picture without a workflow; it carries {there}{hint}. Expected one that ComfyUI or "
        "Loraloom saved; sites that convert or shrink pictures remove the workflow"
    )


def _of_texts(
    values: Mapping[str, dict[str, JSON]], failures: Mapping[str, WorkflowError], name: str,
    texts: Mapping[str, str],
) -> Found:  # fmt: skip
    """The workflow of a picture: what its text `prompt` says, with the editor's beside it where both are
    whole; of one text where the other is none."""
    (key, data), *rest = values.items()
    other = None if not rest else Found(1, "", "ui" if is_ui(rest[0][1]) else "api", name, rest[0][1])
    notes = tuple(
        f"the picture's text {lost!r} is no workflow{f' ({failures[lost]})' if lost in failures else ''};"
        f" its text {key!r} is used"
        for lost in ("prompt", "workflow")
        if lost in texts and lost not in values
    )
    ui = other.data if other is not None and other.format == "ui" else None
    return Found(1, "", "ui" if is_ui(data) else "api", name, data, ui=ui, other=other, notes=notes)


def _in_text(text: str, name: str) -> list[Found]:
    if len(text) > MAX_BYTES:
        raise InputError(f"{name} is larger than {MAX_BYTES >> 20} MB; no workflow is")
    if not text.strip():
        raise InputError(f"{name} is empty; expected a workflow or a page that prints one")
    text = SURROGATE.sub("\ufffd", text)
    failure: WorkflowError | None = None
    if text.lstrip()[0] in "{[":
        try:
            whole = [Printed(data, "") for data in workflows_in(read_json(text, name))]
        except WorkflowError as error:
            whole, failure = [], error
        if whole:
            return _numbered(whole, name)
    printed = printed_workflows(text)
    if failure is not None and all(p.damage is not None for p in printed):
        raise failure
    if not printed:
        raise InputError(
            f"{name} holds no workflow; expected JSON with a list “nodes” (of the editor) or nodes with "
            "“class_type” (API format), alone or printed in a page"
        )
    return _numbered(printed, name)


def _numbered(printed: list[Printed], name: str) -> list[Found]:
    many = len(printed) > 1
    return [
        Found(
            index=index,
            title=entry.title,
            format="ui" if is_ui(entry.data) else "api",
            origin=f"{name}, workflow {index}" if many else name,
            data=entry.data,
            damage=entry.damage,
        )
        for index, entry in enumerate(printed, 1)
    ]
