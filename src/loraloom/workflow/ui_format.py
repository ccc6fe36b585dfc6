"""An editor's workflow → Graph: what the editor itself would send to a server.

Notes, reroutes, primitives, muted and bypassed nodes and subgraph borders disappear; what remains are nodes
with named inputs. Ids of nodes inside subgraphs are joined by colons ("200:195").
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.graph import JSON, Graph, GraphNode, Link, ModelReference, Value
from loraloom.workflow.group_nodes import without_group_nodes
from loraloom.workflow.prompt_text import SAVERS, choose, fill
from loraloom.workflow.routes import VIRTUAL, Literal, Origin, Routes
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.subgraphs import Instance, fill_promoted, instances
from loraloom.workflow.ui_document import BYPASS, NEVER, Document, UiNode, read_document, subgraph_definitions
from loraloom.workflow.use_everywhere import with_everywhere_links
from loraloom.workflow.widgets import unknown_names, widget_values


@dataclass(frozen=True, slots=True)
class Queueing:
    """What an editor's queue button depends on beside the workflow: chance and the clock.

    Fixed values make a conversion repeatable.
    """

    rng: random.Random
    now: datetime

    @staticmethod
    def fresh(seed: int | None = None) -> Queueing:
        return Queueing(random.Random(seed), datetime.now())


def parse_ui(
    data: dict[str, JSON],
    *,
    schemas: Mapping[str, NodeSchema] | None = None,
    queueing: Queueing | None = None,
    origin: str = "",
) -> Graph:
    """The graph of a workflow in UI format; raises WorkflowError if it cannot be read.

    schemas: the classes to read widget values by; ComfyUI's core classes if not given.
    """
    known = core_schemas() if schemas is None else schemas
    linked, unlisted = with_everywhere_links(data, subgraph_definitions(data))
    unfolded, odd_groups = without_group_nodes(linked, known)
    document = read_document(unfolded)
    conversion = _Conversion(document, known, queueing or Queueing.fresh())
    nodes = conversion.nodes()
    return Graph(
        nodes=nodes,
        ui=data,
        origin=origin,
        models=model_references(data),
        notes=(*unlisted, *odd_groups, *document.notes, *conversion.notes),
    )


class _Conversion:
    """One workflow on its way to a graph."""

    def __init__(self, document: Document, schemas: Mapping[str, NodeSchema], queueing: Queueing) -> None:
        self._document = document
        self._schemas = schemas
        self._queueing = queueing
        self._instances = instances(document)
        fill_promoted(self._instances, schemas)
        self._routes = Routes(schemas)
        self.notes: list[str] = []

    def nodes(self) -> dict[str, GraphNode]:
        out: dict[str, GraphNode] = {}
        for instance, node in self._running():
            inputs = self._literals(instance, node)
            inputs.update(self._linked(instance, node))
            schema = self._schemas.get(node.type)
            shown = (schema.display_name if schema else "") or node.type
            full_id = instance.full_id(node)
            out[full_id] = GraphNode(full_id, node.type, inputs, node.title or shown)
        return {node.id: _without_dead_links(node, out) for node in out.values()}

    def _running(self) -> list[tuple[Instance, UiNode]]:
        """The nodes that run, a subgraph's in the place of its host."""
        out: list[tuple[Instance, UiNode]] = []
        stack = [(self._instances[0], iter(self._instances[0].scope.nodes.values()))]
        unreal = VIRTUAL | self._document.definitions.keys()
        while stack:
            instance, nodes = stack[-1]
            node = next(nodes, None)
            if node is None:
                stack.pop()
            elif node.id in instance.children:
                child = instance.children[node.id]
                stack.append((child, iter(child.scope.nodes.values())))
            elif node.type not in unreal and node.mode not in (NEVER, BYPASS):
                out.append((instance, node))
        return out

    def _literals(self, instance: Instance, node: UiNode) -> dict[str, Value]:
        """The values of a node's widgets, with its texts as an editor queues them."""
        out: dict[str, Value] = {}
        values = widget_values(node, self._schemas.get(node.type))
        if node.values and not values and node.type not in self._schemas:
            self.notes.append(
                f"node {instance.full_id(node)} ({node.type}): {len(node.values)} widget values were left "
                "out, since nothing says which inputs they belong to"
            )
        schema = self._schemas.get(node.type)
        if schema is not None and (strange := unknown_names(node, schema)):
            self.notes.append(
                f"node {instance.full_id(node)} ({node.type}): the class has no input "
                f"{', '.join(map(repr, strange[:8]))}; what was saved under that name is left out"
            )
        for name, value in values.items():
            changed = instance.overrides.get((node.id, name))
            out[name] = self._queued(node, name, value) if changed is None else changed
        return out

    def _linked(self, instance: Instance, node: UiNode) -> dict[str, Value]:
        out: dict[str, Value] = {}
        for index, slot in enumerate(self._routes.inputs(node)):
            if slot.link is None or not slot.name:
                continue
            found = self._routes.origin(instance, node, index)
            if isinstance(found, Origin):
                out[slot.name] = Link(found.node, found.slot)
            elif isinstance(found, Literal) and found.value is not None:
                value = found.value
                out[slot.name] = value if found.final else self._queued(node, slot.name, value)
        return out

    def _queued(self, node: UiNode, name: str, value: JSON) -> JSON:
        if not isinstance(value, str):
            return value
        schema = self._schemas.get(node.type)
        entry = schema.input(name) if schema else None
        if entry is not None and entry.options.get("dynamicPrompts"):
            return choose(value, self._queueing.rng)
        if name == "filename_prefix" and node.type in SAVERS:
            return fill(value, self._value_of, self._queueing.now)
        return value

    def _value_of(self, node_name: str, widget: str) -> JSON:
        """The widget value of the node with this search name, or with this title."""
        nodes = [(i, n) for i in self._instances for n in i.scope.nodes.values()]
        named = [p for p in nodes if p[1].properties.get("Node name for S&R") == node_name]
        for instance, node in named or [p for p in nodes if self._title(p[1]) == node_name]:
            values = widget_values(node, self._schemas.get(node.type))
            return instance.overrides.get((node.id, widget), values.get(widget))
        return None

    def _title(self, node: UiNode) -> str:
        schema = self._schemas.get(node.type)
        return node.title or (schema.display_name if schema else "") or node.type


def _without_dead_links(node: GraphNode, nodes: Mapping[str, GraphNode]) -> GraphNode:
    """The node without links to nodes that do not run."""
    dead = [
        name for name, value in node.inputs.items() if isinstance(value, Link) and value.node not in nodes
    ]
    if not dead:
        return node
    kept = {name: value for name, value in node.inputs.items() if name not in dead}
    return GraphNode(node.id, node.class_type, kept, node.title)


def model_references(data: dict[str, JSON]) -> tuple[ModelReference, ...]:
    """The download sources that a workflow carries, of its nodes and of itself, without doubles."""
    lists: list[JSON] = []
    for scope in (data, *subgraph_definitions(data)):
        lists.append(scope.get("models"))
        nodes = scope.get("nodes")
        for node in nodes if isinstance(nodes, list) else ():
            properties = node.get("properties") if isinstance(node, dict) else None
            lists.append(properties.get("models") if isinstance(properties, dict) else None)
    found = [_model(entry) for entries in lists if isinstance(entries, list) for entry in entries]
    return tuple(dict.fromkeys(model for model in found if model is not None))


def _model(entry: JSON) -> ModelReference | None:
    if not isinstance(entry, dict):
        return None
    name, url, folder, digest = (entry.get(key) for key in ("name", "url", "directory", "hash"))
    if not isinstance(name, str) or not isinstance(url, str):
        return None
    return ModelReference(
        name, folder if isinstance(folder, str) else "", url, digest if isinstance(digest, str) else None
    )
