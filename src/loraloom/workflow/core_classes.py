"""ComfyUI's node classes: names, types, order, defaults, ranges, choices (facts, from `/object_info`).

The converter needs them for graphs with classes that Loraloom has no node for yet, the validator to name
what is wrong in them. The table is `data/core_classes.json`, written by `scripts/core_classes.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import Input, NodeSchema, Output

# Not importlib.resources: it imports archives and networks, and this must load in milliseconds.
TABLE = Path(__file__).parent / "data" / "core_classes.json"


class ClassTable(Mapping[str, NodeSchema]):
    """The rows of the table as schemas; a row is decoded when it is asked for."""

    def __init__(self, rows: dict[str, dict[str, Any]], lists: dict[str, list[JSON]]) -> None:
        self._rows = rows
        self._lists = lists
        self._decoded: dict[str, NodeSchema] = {}

    def __getitem__(self, name: str) -> NodeSchema:
        schema = self._decoded.get(name)
        if schema is None:
            schema = self._decoded[name] = _schema(name, self._rows[name], self._lists)
        return schema

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@cache
def core_schemas() -> ClassTable:
    """Every class of the table, by name."""
    table = cast("dict[str, Any]", json.loads(TABLE.read_text("utf-8")))
    return ClassTable(table["classes"], table["lists"])


def _schema(name: str, row: dict[str, Any], lists: dict[str, list[JSON]]) -> NodeSchema:
    required = [_input(spec, lists, True) for spec in row.get("inputs", ())]
    optional = [_input(spec, lists, False) for spec in row.get("optional", ())]
    return NodeSchema(
        name=name,
        inputs=(*required, *optional),
        outputs=tuple(_output(spec) for spec in row["outputs"]),
        display_name=row.get("title", name) or "",
        category=row.get("category", ""),
        output_node=row.get("output_node", False),
        hidden=row.get("hidden", {}),
        deprecated=row.get("deprecated", False),
        experimental=row.get("experimental", False),
        api_node=row.get("api_node"),
        newer=row.get("newer", False),
        python_module=row.get("module", "nodes"),
    )


def _input(spec: list[Any], lists: dict[str, list[JSON]], required: bool) -> Input:
    options: dict[str, JSON] = spec[2] if len(spec) > 2 else {}
    fixed: dict[str, Any] = spec[3] if len(spec) > 3 else {}
    choices: str | list[JSON] = fixed.get("choices", [])
    if isinstance(choices, str):
        choices = lists[choices]
    return Input(
        name=spec[0],
        type=spec[1],
        choices=tuple(choices),
        folders=tuple(fixed.get("folders", ())),
        options=options,
        required=required,
        lazy=bool(options.get("lazy", False)),
    )


def _output(spec: str | list[Any]) -> Output:
    if isinstance(spec, str):
        return Output(spec, spec)
    return Output(spec[0], spec[1], is_list=len(spec) > 2 and spec[2], later=len(spec) > 3)
