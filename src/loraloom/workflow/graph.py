"""The one form of a workflow that everything else works on.

A `Graph` is what ComfyUI calls the API format, with what the other formats know beside it (titles,
download sources, the editor's JSON for the picture's metadata). It is immutable: changes return a new
graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | dict[str, JSON]"


def kind_of(value: object) -> str:
    """What a value of JSON is, for messages: "a number", "null"."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"


@dataclass(frozen=True, slots=True)
class Link:
    """A connection from output `slot` of node `node`."""

    node: str
    slot: int


Value: TypeAlias = "Link | JSON"


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node: its class, its inputs (links and literal values), and the title its author gave it."""

    id: str
    class_type: str
    inputs: Mapping[str, Value]
    title: str | None = None

    def label(self) -> str:
        """How messages name this node: id, title and class."""
        if self.title and self.title != self.class_type:
            return f"node {self.id} “{self.title}” ({self.class_type})"
        return f"node {self.id} ({self.class_type})"

    def links(self) -> dict[str, Link]:
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A download source that a workflow carries for one of its model files (`properties.models`)."""

    name: str
    folder: str
    url: str
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes by id, in the order of the source.

    ui: the editor's JSON that the graph was made from, kept for the picture's metadata.
    origin: where it came from ("page.txt, workflow 2"), for messages.
    notes: what the reader wants the user to know (dropped nodes, repaired values).
    """

    nodes: Mapping[str, GraphNode]
    ui: dict[str, JSON] | None = None
    origin: str = ""
    models: tuple[ModelReference, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_api(self) -> dict[str, JSON]:
        """The graph as ComfyUI's API JSON; links are `[node id, slot]`.

        A list that is a value is wrapped as `{"__value__": [...]}`, ComfyUI's way to tell it from a link.
        """
        out: dict[str, JSON] = {}
        for node in self.nodes.values():
            inputs: dict[str, JSON] = {name: _spelled(value) for name, value in node.inputs.items()}
            entry: dict[str, JSON] = {"inputs": inputs, "class_type": node.class_type}
            if node.title is not None:
                entry["_meta"] = {"title": node.title}
            out[node.id] = entry
        return out

    def with_inputs(self, node_id: str, inputs: Mapping[str, Value]) -> Graph:
        """A graph in which some inputs of one node have other values."""
        node = self.nodes[node_id]
        changed = replace(node, inputs={**node.inputs, **inputs})
        return replace(self, nodes={**self.nodes, node_id: changed})


def _spelled(value: Value) -> JSON:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value
