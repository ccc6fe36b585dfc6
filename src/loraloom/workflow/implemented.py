"""Which node classes Loraloom runs, told without importing them.

`data/implemented.json` is written by `scripts/index_nodes.py` from the node library; a test compares. Classes
that ComfyUI has too are listed by name, their schemas stand in `core_classes`; the others stand there whole.
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
    text = resources.files("loraloom.workflow").joinpath("data/implemented.json").read_text("utf-8")
    table = cast("dict[str, Any]", json.loads(text))
    core = core_schemas()
    own = {name: read_schema(row) for name, row in table["own"].items()}
    described = cast("dict[str, str]", table["core"])
    return {**{name: core[name] for name in described}, **own}


@cache
def known_schemas() -> Mapping[str, NodeSchema]:
    """The schemas to read workflows by: Loraloom's nodes and all of ComfyUI's core classes."""
    own = {name: s for name, s in implemented_schemas().items() if name not in core_schemas()}
    # ChainMap asks for mutable maps though it writes to the first alone; the core table decodes on demand.
    return ChainMap(own, cast("dict[str, NodeSchema]", core_schemas()))


def index(schemas: Mapping[str, NodeSchema]) -> str:
    """The text of `implemented.json` for these schemas."""
    core = core_schemas()
    shared = {name: s.description for name, s in sorted(schemas.items()) if name in core}
    own = {name: asdict(s) for name, s in sorted(schemas.items()) if name not in core}
    return json.dumps({"core": shared, "own": own}, indent=1, ensure_ascii=False) + "\n"


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
