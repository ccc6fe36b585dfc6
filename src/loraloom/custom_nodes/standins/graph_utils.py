"""Stands in for `comfy_execution.graph_utils`: building the nodes that take a node's place."""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.custom_nodes.current import next_prefix
from loraloom.custom_nodes.dynamic_prompt import is_link

__all__ = ["ExecutionBlocker", "GraphBuilder", "Node", "add_graph_prefix", "is_link"]

from loraloom.engine.result import ExecutionBlocker


class Node:
    """A node that is being built."""

    def __init__(self, id: str, class_type: str, inputs: Mapping[str, object]) -> None:
        self.id, self.class_type, self.inputs = id, class_type, dict(inputs)
        self.override_display_id: str | None = None

    def out(self, index: int) -> list[object]:
        """A link to one of its outputs."""
        return [self.id, index]

    def set_input(self, key: str, value: object) -> None:
        """Set an input; None takes it away."""
        if value is None:
            self.inputs.pop(key, None)
        else:
            self.inputs[key] = value

    def get_input(self, key: str) -> object:
        return self.inputs.get(key)

    def set_override_display_id(self, override_display_id: str) -> None:
        self.override_display_id = override_display_id

    def serialize(self) -> dict[str, object]:
        entry: dict[str, object] = {"class_type": self.class_type, "inputs": self.inputs}
        if self.override_display_id is not None:
            entry["override_display_id"] = self.override_display_id
        return entry


class GraphBuilder:
    """Collects nodes under ids that begin with a prefix of its own, so that no id of the graph is taken."""

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = next_prefix() if prefix is None else prefix
        self.nodes: dict[str, Node] = {}
        self.id_gen = 1

    def node(self, class_type: str, id: str | None = None, **kwargs: object) -> Node:
        """A new node, or the one of that id when there is one already."""
        if id is None:
            id = str(self.id_gen)
            self.id_gen += 1
        full = self.prefix + id
        if full not in self.nodes:
            self.nodes[full] = Node(full, class_type, kwargs)
        return self.nodes[full]

    def lookup_node(self, id: str) -> Node | None:
        return self.nodes.get(self.prefix + id)

    def finalize(self) -> dict[str, dict[str, object]]:
        """The nodes in API format."""
        return {node_id: node.serialize() for node_id, node in self.nodes.items()}

    def replace_node_output(self, node_id: str, index: int, new_value: object) -> None:
        """Give another value to every input that is linked to that output; None takes the input away."""
        wanted = [self.prefix + node_id, index]
        for node in self.nodes.values():
            for name, value in [*node.inputs.items()]:
                if is_link(value) and value == wanted:
                    node.set_input(name, new_value)

    def remove_node(self, id: str) -> None:
        del self.nodes[self.prefix + id]


def add_graph_prefix(
    graph: Mapping[str, Mapping[str, object]], outputs: object, prefix: str
) -> tuple[dict[str, object], tuple[object, ...]]:
    """The nodes and outputs of a graph with all ids prefixed."""

    def prefixed(value: object) -> object:
        return [f"{prefix}{value[0]}", value[1]] if isinstance(value, list) and is_link(value) else value

    nodes: dict[str, object] = {}
    for node_id, entry in graph.items():
        inputs = entry.get("inputs", {})
        said = {name: prefixed(value) for name, value in inputs.items()} if isinstance(inputs, dict) else {}
        nodes[prefix + node_id] = {**entry, "inputs": said}
    given = outputs if isinstance(outputs, list | tuple) else ()
    return nodes, tuple(prefixed(output) for output in given)
