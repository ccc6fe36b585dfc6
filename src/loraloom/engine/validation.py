"""Checks that only a node's own code can make: ComfyUI's VALIDATE_INPUTS."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from loraloom.engine import calls
from loraloom.engine.context import fitting
from loraloom.engine.node import NodeType
from loraloom.workflow.graph import JSON, Graph, GraphNode, Link
from loraloom.workflow.report import Problem


class ClassChecks:
    """The checks of these node classes, in the form that `workflow.validate.validate` asks them."""

    def __init__(self, nodes: Mapping[str, NodeType]) -> None:
        self._nodes = nodes

    def covers(self, class_type: str) -> frozenset[str]:
        kind = self._nodes.get(class_type)
        return frozenset() if kind is None else checked_by_node(kind)

    def problems(self, graph: Graph, node_ids: Iterable[str]) -> list[Problem]:
        return own_checks(graph, self._nodes, node_ids)


def own_checks(graph: Graph, nodes: Mapping[str, NodeType], node_ids: Iterable[str]) -> list[Problem]:
    """What the `validate` functions of these nodes object to.

    A function receives those inputs that it names, None for what is linked, and as `input_types` the types of
    what is linked.
    """
    asked = [i for i in node_ids if (kind := nodes.get(graph.nodes[i].class_type)) and kind.validate]
    if not asked:
        return []
    # In a thread of its own: the caller may be inside an event loop (a server, a notebook).
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _own_checks(graph, nodes, asked)).result()


def checked_by_node(kind: NodeType) -> frozenset[str]:
    """The inputs whose literal values a class checks itself, so that the general checks leave them alone."""
    if kind.validate is None:
        return frozenset()
    parameters = inspect.signature(kind.validate).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return frozenset(i.name for i in kind.schema.inputs)
    return frozenset(parameters)


async def _own_checks(graph: Graph, nodes: Mapping[str, NodeType], node_ids: Iterable[str]) -> list[Problem]:
    problems: list[Problem] = []
    for node in (graph.nodes[node_id] for node_id in node_ids):
        kind = nodes.get(node.class_type)
        if kind is None or kind.validate is None:
            continue
        known = {
            n: [None if isinstance(v, Link) else v] for n, v in node.inputs.items() if kind.schema.input(n)
        }
        validate, more = kind.validate, {"input_types": _linked_types(graph, nodes, node)}
        asked = calls.calls_for(known, kind.schema.input_is_list)
        try:
            said = await calls.call_all(validate, (fitting(validate, {**c, **more}, None) for c in asked))
        except Exception as error:  # noqa: BLE001 - a check that fails is a check that objects
            said = [f"{type(error).__name__}: {error}"]
        problems.extend(_problem(node, verdict) for verdict in said if verdict is not True)
    return problems


def _linked_types(graph: Graph, nodes: Mapping[str, NodeType], node: GraphNode) -> dict[str, str]:
    types: dict[str, str] = {}
    for name, link in node.links().items():
        producer = graph.nodes.get(link.node)
        kind = nodes.get(producer.class_type) if producer is not None else None
        if kind is not None and 0 <= link.slot < len(kind.schema.outputs):
            types[name] = kind.schema.outputs[link.slot].type
    return types


def _problem(node: GraphNode, verdict: object) -> Problem:
    extra: dict[str, JSON] = {}
    return Problem(
        type="custom_validation_failed",
        message="Custom validation failed for node",
        details=str(verdict) if isinstance(verdict, str) else node.label(),
        node_id=node.id,
        node_label=node.label(),
        class_type=node.class_type,
        extra_info=extra,
    )
