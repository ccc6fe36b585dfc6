"""Nodes that take the place of one that was expanded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from loraloom.engine.result import NodeResult
from loraloom.workflow.graph import Graph, GraphNode, Link, Value


def placed(node_id: str, results: Sequence[NodeResult]) -> tuple[list[NodeResult], list[GraphNode]]:
    """The results of a node's calls with links into the run's graph, and the nodes that are added to it, with
    ids that begin with the node's."""
    found, added = list[NodeResult](), list[GraphNode]()
    for index, result in enumerate(results):
        if result.expand is None:
            found.append(result)
            continue
        names = {i: f"{node_id}.{index}.{i}" for i in result.expand.nodes}
        added += _renamed(result.expand, names)
        outputs = tuple(_relinked(o, names) if isinstance(o, Link) else o for o in result.outputs)
        found.append(NodeResult(outputs, result.ui))
    return found, added


def _renamed(graph: Graph, names: Mapping[str, str]) -> Iterator[GraphNode]:
    for node in graph.nodes.values():
        inputs: dict[str, Value] = {
            name: _relinked(value, names) if isinstance(value, Link) else value
            for name, value in node.inputs.items()
        }
        yield replace(node, id=names[node.id], inputs=inputs)


def _relinked(link: Link, names: Mapping[str, str]) -> Link:
    return Link(names.get(link.node, link.node), link.slot)
