"""Which node classes Loraloom runs, told without importing them.

`data/implemented.json` is written by `scripts/index_nodes.py` from the node library; a test compares. Classes
that ComfyUI has too are listed by name, their schemas stand in `core_classes`; the others stand there whole,
and so do those of which workflows showed `core_classes` no more than a part.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Any, cast

from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.schema import Input, NodeSchema, Output


@cache
def implemented_schemas() -> Mapping[str, NodeSchema]:
    """Schema by class name of every node that Loraloom has."""
    core = core_schemas()
    return {**{name: core[name] for name in cast("dict[str, str]", _table()["core"])}, **_own_schemas()}


@cache
def _table() -> dict[str, Any]:
    text = resources.files("loraloom.workflow").joinpath("data/implemented.json").read_text("utf-8")
    return json.loads(text)


@cache
def _own_schemas() -> dict[str, NodeSchema]:
    return {name: read_schema(row) for name, row in _table()["own"].items()}


@cache
def known_schemas() -> Mapping[str, NodeSchema]:
    """The schemas to read workflows by: Loraloom's nodes and all of ComfyUI's core classes."""
    # ChainMap asks for mutable maps though it writes to the first alone; the core table decodes on demand.
    return ChainMap(_own_schemas(), cast("dict[str, NodeSchema]", core_schemas()))


def index(schemas: Mapping[str, NodeSchema]) -> str:
    """The text of `implemented.json` for these schemas."""
    shared = {name: s.description for name, s in sorted(schemas.items()) if _is_core(s)}
    own = {name: asdict(s) for name, s in sorted(schemas.items()) if not _is_core(s)}
    return json.dumps({"core": shared, "own": own}, indent=1, ensure_ascii=False) + "\n"


def _is_core(schema: NodeSchema) -> bool:
    """Whether `core_classes` says of a class all that our own schema does."""
    known = core_schemas().get(schema.name)
    if known is None:
        return False
    choosing = any("variants" in entry.options for entry in known.inputs)
    shown = {entry.name for entry in known.inputs}
    return not known.newer or choosing or not shown <= {entry.name for entry in schema.inputs}


def read_schema(row: dict[str, Any]) -> NodeSchema:
    """A schema that `dataclasses.asdict` and JSON have taken apart."""
    parts: dict[str, Any] = {**row, "outputs": tuple(Output(**o) for o in row["outputs"])}
    inputs: list[Input] = []
    for entry in row["inputs"]:
        fields: dict[str, Any] = dict(entry)
        fields.update(choices=tuple(entry["choices"]), folders=tuple(entry["folders"]))
        inputs.append(Input(**fields))
    parts["inputs"] = tuple(inputs)
    return NodeSchema(**parts)
