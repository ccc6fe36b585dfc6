"""Runs of graphs of pack nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from loraloom.engine.cache import Cache
from loraloom.engine.events import Event, NodeFinished, NodeStarted
from loraloom.engine.node import NodeType
from loraloom.engine.run import run
from loraloom.workflow.graph import JSON, Graph, GraphNode, Link, Value

Nodes = Mapping[str, NodeType]


def graph(**entries: tuple[str, dict[str, object]]) -> Graph:
    """Node `n3=("Class", {"input": ("n1", 0)})`: a tuple is a link."""
    nodes: dict[str, GraphNode] = {}
    for node_id, (class_type, given) in entries.items():
        inputs: dict[str, Value] = {}
        for name, value in given.items():
            inputs[name] = Link(*value) if isinstance(value, tuple) else cast("Value", value)
        nodes[node_id] = GraphNode(node_id, class_type, inputs)
    return Graph(nodes)


def events(nodes: Nodes, wanted: Graph, cache: Cache | None = None) -> list[Event]:
    extra: dict[str, JSON] = {"workflow": {"id": "page"}}
    return [*run(wanted, nodes, cache=cache, extra_pnginfo=extra)]


def shown(said: Iterable[Event]) -> dict[str, JSON]:
    """What TpShow nodes showed, by the node of the graph; of several the last."""
    finished = (e for e in said if isinstance(e, NodeFinished))
    return {e.display_id: e.ui["shown"] for e in finished if "shown" in e.ui}


def started(said: Iterable[Event]) -> set[str]:
    return {e.node_id for e in said if isinstance(e, NodeStarted)}
