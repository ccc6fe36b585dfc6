"""Writes docs/reference/http.md from the server's OpenAPI schema and its routes.

usage: .venv/bin/python scripts/index_http.py
"""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from loraloom.folders import ModelFolders
from loraloom.server import file_routes, library_routes, queue_routes, user_routes
from loraloom.server.api import create_api
from loraloom.server.app import Setup, open_state
from loraloom.server.settings import ServerSettings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "http.md"
HEAD = """# HTTP interface

What the server answers under `/v1`, and which of ComfyUI's routes it has. This page is written by
`scripts/index_http.py` from the OpenAPI schema that a running server offers at `/v1/openapi.json`; a test
fails when it is not current. How the server behaves: [The server](../server.md).
"""
ROUTES_HEAD = """## ComfyUI's routes

In ComfyUI's wire format, at the root and under `/api`, with the WebSocket at `/ws`. What they take and answer
is what ComfyUI's clients know.

| path | methods |
|---|---|"""


def schema() -> dict[str, Any]:
    """The OpenAPI schema of a server that is never started."""
    with tempfile.TemporaryDirectory() as name:
        own = {kind: Path(name) / kind for kind in ("output_dir", "input_dir", "temp_dir", "user_dir")}
        setup = Setup(ServerSettings(**own), ModelFolders([]), {}, "", {})
        state, store = open_state(setup)
        try:
            return create_api(state).openapi()
        finally:
            store.close()


def page() -> str:
    found = schema()
    lines = [HEAD, *_operations(found), "## Any operation", "", *_refusals(found), *_models(found)]
    return "\n".join([*lines, ROUTES_HEAD, *_comfyui(), ""])


def _operations(found: Mapping[str, Any]) -> Iterator[str]:
    paths: Mapping[str, Mapping[str, Any]] = found["paths"]
    for section, group in groupby(paths.items(), key=lambda item: item[0].split("/")[1]):
        yield from (f"## {section.capitalize()}", "")
        for path, methods in group:
            for method, operation in methods.items():
                yield from (f"### {method.upper()} /v1{path}", "")
                yield from (_flowing(operation.get("description", "")), "")
                yield from _parameters(operation.get("parameters", ()))
                yield from (_exchange(operation), "")
                yield from _body(operation)


def _parameters(parameters: list[Mapping[str, Any]]) -> Iterator[str]:
    if not parameters:
        return
    yield from ("| parameter | type | what it says |", "|---|---|---|")
    for one in parameters:
        about = one.get("description", "")
        if "default" in one["schema"] and one["schema"]["default"] not in (None, ""):
            about = f"{about} Default: {one['schema']['default']}.".strip()
        name = f"`{one['name']}`" + ("" if one["in"] == "query" else " (path)")
        yield f"| {name} | {_type(one['schema'])} | {_flowing(about) or '–'} |"
    yield ""


def _exchange(operation: Mapping[str, Any]) -> str:
    """One line: what goes in, what comes out."""
    said: list[str] = []
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        given = content.get("schema", {})
        said.append(f"Takes {'an object' if 'properties' in given else _type(given, kind)}.")
    for code, answer in operation["responses"].items():
        if code.startswith("2"):
            kinds = answer.get("content", {})
            kind = "text/event-stream" if "text/event-stream" in kinds else "application/json"
            answered = _type(kinds.get(kind, {}).get("schema", {}), kind) if kinds else "nothing"
            said.append(f"Answers {code} with {answered}.")
    others = [c for c in operation["responses"] if c in ("404", "409", "429")]
    return " ".join([*said, *([f"Also {', '.join(others)}."] if others else [])])


def _body(operation: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a body that is described in its place."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield from _fields(content.get("schema", {}).get("properties", {}))


def _fields(properties: Mapping[str, Any]) -> Iterator[str]:
    if not properties:
        return
    yield from ("| field | type | what it says |", "|---|---|---|")
    for field, said in properties.items():
        about = said.get("description", "")
        if said.get("default") not in (None, "", [], {}):
            about = f"{about} Default: {said['default']}.".strip()
        yield f"| `{field}` | {_type(said)} | {_flowing(about) or '–'} |"
    yield ""


def _type(given: Mapping[str, Any], media: str = "application/json") -> str:
    if "$ref" in given:
        name = given["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if media == "text/event-stream":
        return "server-sent events"
    if media == "application/octet-stream":
        return "the bytes of a file"
    if given.get("type") == "object" and "properties" in given:
        return f"object with {', '.join(f'`{name}`' for name in given['properties'])}"
    if choices := given.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if kinds := given.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(kind) for kind in kinds))
    if given.get("type") == "array":
        return f"array of {_type(given.get('items', {}))}"
    return str(given.get("type", "JSON" if media == "application/json" else media))


def _refusals(found: Mapping[str, Any]) -> Iterator[str]:
    operation = found["paths"]["/queue"]["get"]
    yield from (
        "These may be answered too; the body is a [Refusal](#refusal).",
        "",
        "| status | why |",
        "|---|---|",
    )
    for code, answer in operation["responses"].items():
        if not code.startswith("2"):
            yield f"| {code} | {answer['description']} |"
    yield ""


def _models(found: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Objects", "")
    for name, model in found["components"]["schemas"].items():
        if "properties" not in model or "Validation" in name:  # FastAPI's own
            continue
        yield from (f"### {name}", "")
        if model.get("description"):
            yield from (_flowing(model["description"]), "")
        yield from _fields(model["properties"])


def _comfyui() -> Iterator[str]:
    methods: dict[str, list[str]] = {}
    for module in (queue_routes, file_routes, library_routes, user_routes):
        for route in module.routes():
            path = re.sub(r":\w+", "", getattr(route, "path", ""))
            methods.setdefault(path, []).extend(sorted(set(getattr(route, "methods", ())) - {"HEAD"}))
    for path, names in methods.items():
        yield f"| `{path}` | {', '.join(names)} |"


def _flowing(text: str) -> str:
    """A description in one line."""
    return re.sub(r"\s+", " ", inspect.cleandoc(text)).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
