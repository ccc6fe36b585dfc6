"""ComfyUI's API format → Graph: nodes by id, each with its class and its inputs by name."""

from __future__ import annotations

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON, Graph, GraphNode, Link, Value, kind_of


def is_api(data: JSON) -> bool:
    """Whether a JSON value looks like an API workflow: an object with at least one node."""
    if not isinstance(data, dict):
        return False
    return any(isinstance(entry, dict) and "class_type" in entry for entry in data.values())


def without_comments(data: dict[str, JSON]) -> tuple[dict[str, JSON], tuple[str, ...]]:
    """An API workflow without what people write beside its nodes, and the keys of that: what has neither a
    class nor inputs is no node."""
    nodes: dict[str, JSON] = {
        key: entry
        for key, entry in data.items()
        if isinstance(entry, dict) and ("class_type" in entry or "inputs" in entry)
    }
    return nodes, tuple(key for key in data if key not in nodes)


def parse_api(data: dict[str, JSON], *, ui: dict[str, JSON] | None = None, origin: str = "") -> Graph:
    """The graph of a workflow in API format; raises WorkflowError that names the node that is wrong, or says
    that this is the editor's format.

    Links to nodes that are not there are kept: validation reports them.
    """
    if isinstance(data.get("nodes"), list):
        raise WorkflowError(
            "this is a workflow in the editor's format (a list of nodes), and the API format is expected:"
            " export it in the editor with Export (API), or turn it over with `loraloom convert`"
        )
    nodes = {node_id: _node(node_id, entry) for node_id, entry in data.items()}
    return Graph(nodes=nodes, ui=ui, origin=origin)


def _node(node_id: str, entry: JSON) -> GraphNode:
    if not isinstance(entry, dict):
        found = kind_of(entry)
        raise WorkflowError(f"node {node_id} is {found}; expected an object with class_type and inputs")
    class_type = entry.get("class_type")
    if not isinstance(class_type, str) or not class_type:
        raise WorkflowError(f"node {node_id} has no class_type; expected the name of a node class")
    inputs = entry.get("inputs", {})
    if not isinstance(inputs, dict):
        raise WorkflowError(f"node {node_id} ({class_type}): inputs is {kind_of(inputs)}; expected an object")
    meta = entry.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return GraphNode(
        id=node_id,
        class_type=class_type,
        inputs={name: read_value(value) for name, value in inputs.items()},
        title=title if isinstance(title, str) else None,
    )


def read_value(value: JSON) -> Value:
    """A link where ComfyUI sees one: a list of a text and a whole number. `{"__value__": …}` is unwrapped."""
    if isinstance(value, dict) and isinstance(value.get("__value__"), list):
        return value["__value__"]
    if not isinstance(value, list) or len(value) != 2:
        return value
    node, slot = value
    if not isinstance(node, str) or isinstance(slot, bool) or not isinstance(slot, int | float):
        return value
    return Link(node, int(slot)) if slot == slot // 1 and abs(slot) < 1 << 31 else value
