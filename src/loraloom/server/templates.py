"""The official editor's templates: those that can run here, with their pictures where these are installed.

They come from the packages `comfyui-workflow-templates-json` (the extra `ui`) and, for the pictures,
`comfyui-workflow-templates-media-image`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loraloom.server import paths
from loraloom.server.answers import Answer
from loraloom.server.page import package_folder, static
from loraloom.server.state import state_of
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import NodeSchema

_PACKAGES = ("comfyui_workflow_templates_json", "comfyui_workflow_templates_media_image")
_INDEX = re.compile(r"index(\.[A-Za-z-]+)?\.json")
_NOT_INDEXES = frozenset({"index.schema.json", "index.mcp.json"})
# Nodes of the editor alone.
_EDITORS = frozenset({"Note", "MarkdownNote", "Reroute", "PrimitiveNode"})
_ASLEEP = frozenset({2, 4})
"""Modes of nodes that are muted or bypassed."""
_ONLY_FOR = {"QuadrupleCLIPLoader": "hidream"}
"""Loaders of text encoders that serve one type, and so have no input for it."""


class Templates:
    """The route /templates.

    text_types: gives the types of text encoders that a family here has; asked when it is needed."""

    def __init__(self, text_types: Callable[[], Collection[str]]) -> None:
        self._text_types = text_types
        self._screen: Screen | None = None

    def routes(self) -> list[Route]:
        return [Route("/templates/{name:path}", self.answer, methods=["GET"])]

    async def answer(self, request: Request) -> Response:
        """A template, its picture, or the index of all, without those that cannot run."""
        name = str(request.path_params["name"])
        folders = [f for package in _PACKAGES if (f := package_folder(package, "templates")) is not None]
        found = next((folder for folder in folders if paths.inside(folder, name).is_file()), None)
        if found is None:
            raise HTTPException(404)
        if not _INDEX.fullmatch(name) or name in _NOT_INDEXES:
            return static(found, name)
        state = state_of(request)
        await state.all_classes()
        return Answer(await asyncio.to_thread(self._runnable, found, name, state.schemas))

    def _runnable(self, folder: Path, name: str, schemas: Mapping[str, NodeSchema]) -> JSON:
        """An index without the templates that this server cannot run, and without what is then empty."""
        screen = self._screen
        if screen is None or screen.schemas is not schemas:
            screen = self._screen = Screen(folder, schemas, self._text_types())
        index: list[Any] = json.loads((folder / name).read_text("utf-8"))
        for category in index:
            category["templates"] = [entry for entry in category["templates"] if screen.runs(entry["name"])]
        return [category for category in index if category["templates"]]


class Screen:
    """Which templates of a folder need nothing but these classes and these types of text encoders."""

    def __init__(self, folder: Path, schemas: Mapping[str, NodeSchema], text_types: Collection[str]) -> None:
        self.schemas = schemas
        self._folder, self._text_types = folder, text_types
        self._known: dict[str, bool] = {}

    def runs(self, name: str) -> bool:
        if name not in self._known:
            self._known[name] = self._looked_at(self._folder / f"{name}.json")
        return self._known[name]

    def _looked_at(self, path: Path) -> bool:
        try:
            workflow: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return all(self._can_run(node) for node in _nodes(workflow))
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _can_run(self, node: Mapping[str, Any]) -> bool:
        kind = node["type"]
        if kind in _EDITORS or node.get("mode") in _ASLEEP:
            return True
        schema = self.schemas.get(kind)
        return schema is not None and not self._foreign_types(schema, node.get("widgets_values"))

    def _foreign_types(self, schema: NodeSchema, values: object) -> set[str]:
        """Types of text encoders that a loader of them is set to, and that no family here has."""
        if not any(output.type == "CLIP" for output in schema.outputs):
            return set()
        offered = {str(c) for entry in schema.inputs if entry.name == "type" for c in entry.choices}
        stated = (
            {str(value) for value in cast("list[JSON]", values)} if isinstance(values, list) else set[str]()
        )
        return ((stated & offered) | {_ONLY_FOR.get(schema.name, "")}) - {"", *self._text_types}


def _nodes(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The nodes of a workflow and of its subgraphs; those that stand for a subgraph are left out."""
    subgraphs = (workflow.get("definitions") or {}).get("subgraphs") or []
    own = {subgraph["id"] for subgraph in subgraphs}
    for graph in (workflow, *subgraphs):
        yield from (node for node in graph["nodes"] if node["type"] not in own)
