"""The graph of a run as packs ask for it: nodes in the form of the API, those of expansions included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from loraloom.engine.node import NodeRun
from loraloom.workflow.graph import JSON, Graph


def is_link(value: object) -> bool:
    """Whether a value is a link in API format: a list of a node id and an output's number."""
    if not isinstance(value, list):
        return False
    parts = cast("list[object]", value)
    if len(parts) != 2 or not isinstance(parts[0], str):
        return False
    return isinstance(parts[1], int | float) and not isinstance(parts[1], bool)


class NodeNotFoundError(Exception):
    """There is no node of that id."""


class DynamicPrompt:
    """The hidden input DYNPROMPT, with the methods of ComfyUI's class of that name that read."""

    def __init__(self, run: NodeRun) -> None:
        self._nodes, self._parents, self._prompt = run.nodes, run.parents, run.prompt

    def get_node(self, node_id: str) -> dict[str, JSON]:
        """A node with its class_type and inputs; raises NodeNotFoundError."""
        node = self._nodes.get(node_id)
        if node is None:
            raise NodeNotFoundError(f"Node {node_id} not found")
        return cast("dict[str, JSON]", Graph({node_id: node}).to_api()[node_id])

    def has_node(self, node_id: str) -> bool:
        return node_id in self._nodes

    def all_node_ids(self) -> set[str]:
        return set(self._nodes)

    def get_original_prompt(self) -> Mapping[str, JSON]:
        return self._prompt

    def get_parent_node_id(self, node_id: str) -> str | None:
        return self._parents.get(node_id)

    def get_real_node_id(self, node_id: str) -> str:
        """The node of the graph in whose place a node stands."""
        while node_id in self._parents:
            node_id = self._parents[node_id]
        return node_id

    get_display_node_id = get_real_node_id
