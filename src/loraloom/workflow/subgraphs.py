"""Instances of subgraphs: which nodes they hold, and the values that their host nodes carry for them.

A host node shows widgets of the nodes inside ("promoted"). Their values are saved in two ways: as a list in
the order of the definition's inputs that stand for a widget, or as `properties.proxyWidgets`, pairs of inner
node and widget name, with the values (if any) in the order of the pairs. A host's value wins over the inner
node's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.ui_document import BYPASS, INPUT_NODE, NEVER, Document, Scope, Slot, UiNode
from loraloom.workflow.widgets import widget_values

MAX_DEPTH = 64
MAX_NODES = 200_000
_PREFIX = re.compile(r"\s*\d+\s*:\s*(.+)", re.DOTALL)


@dataclass(slots=True, eq=False)
class Instance:
    """One use of a scope: the workflow itself (no host), or a subgraph at a host node.

    path: the ids of the hosts from the root; inner ids are `path:id`.
    promoted: what the host says for the definition's inputs, by input position.
    overrides: what the host says for widgets that no input stands for, by (node id, widget name).
    """

    scope: Scope
    path: tuple[str, ...] = ()
    host: UiNode | None = None
    parent: Instance | None = None
    children: dict[str, Instance] = field(default_factory=lambda: dict[str, Instance]())
    promoted: dict[int, JSON] = field(default_factory=lambda: dict[int, JSON]())
    overrides: dict[tuple[str, str], JSON] = field(default_factory=lambda: dict[tuple[str, str], JSON]())

    def full_id(self, node: UiNode) -> str:
        return ":".join((*self.path, node.id))


def instances(document: Document) -> list[Instance]:
    """The root and every subgraph instance in it, outermost first.

    Hosts that are muted or bypassed at the root are not entered; further down the editor enters them all.
    Raises WorkflowError for a subgraph that contains itself or that multiplies beyond any use.
    """
    root = Instance(document.root)
    out = [root]
    total = len(root.scope.nodes)
    for instance in out:
        for node in instance.scope.nodes.values():
            scope = document.definitions.get(node.type)
            if scope is None or (instance is root and node.mode in (NEVER, BYPASS)):
                continue
            if len(instance.path) >= MAX_DEPTH:
                raise WorkflowError(
                    f"{scope.name} is nested more than {MAX_DEPTH} levels deep: it contains itself, "
                    "directly or through another; take that node out of it in the editor"
                )
            total += len(scope.nodes)
            if total > MAX_NODES:
                raise WorkflowError(f"the subgraphs of the workflow expand to more than {MAX_NODES} nodes")
            child = Instance(scope, (*instance.path, node.id), node, instance)
            instance.children[node.id] = child
            out.append(child)
    return out


def bound_slot(instance: Instance, index: int) -> Slot | None:
    """The socket of the host that stands for input `index` of the definition."""
    if instance.host is None or index >= len(instance.scope.inputs):
        return None
    name = instance.scope.inputs[index].name
    return next((slot for slot in instance.host.inputs if slot.name == name), None)


def fill_promoted(found: list[Instance], schemas: Mapping[str, NodeSchema]) -> None:
    """Gives every instance the values of its host; inner ones first, since outer ones default to theirs."""
    for instance in reversed(found):
        host = instance.host
        if host is None:
            continue
        sources = [_source(instance, index, schemas) for index in range(len(instance.scope.inputs))]
        for index, source in enumerate(sources):
            if source is not None:
                value = _inner_value(instance, source, schemas)
                if value is not None:
                    instance.promoted[index] = value[0]
        _apply_list(instance, host)
        _apply_proxies(instance, host, sources)


def _source(instance: Instance, index: int, schemas: Mapping[str, NodeSchema]) -> tuple[str, str] | None:
    """The inner (node id, widget name) that input `index` of the definition stands for."""
    for link in instance.scope.departures.get((INPUT_NODE, index), ()):
        node = instance.scope.nodes.get(link.target)
        if node is None:
            continue
        slot = next((s for s in node.inputs if s.link == link.id), None)
        if slot is None:
            continue
        schema = schemas.get(node.type)
        entry = schema.input(slot.name) if schema else None
        if node.id in instance.children:
            if _inner_value(instance, (node.id, slot.name), schemas) is not None:
                return node.id, slot.name
        elif slot.widget or (entry is not None and entry.is_widget):
            return node.id, slot.widget or slot.name
    return None


def _inner_value(
    instance: Instance, source: tuple[str, str], schemas: Mapping[str, NodeSchema]
) -> tuple[JSON] | None:
    """The value of an inner widget (boxed, since it may be null), or None if there is no such widget."""
    node_id, name = source
    child = instance.children.get(node_id)
    if child is not None:
        index = next((i for i, slot in enumerate(child.scope.inputs) if slot.name == name), -1)
        return (child.promoted[index],) if index in child.promoted else None
    node = instance.scope.nodes[node_id]
    values = widget_values(node, schemas.get(node.type))
    return (values[name],) if name in values else None


def _apply_list(instance: Instance, host: UiNode) -> None:
    values = iter(host.values)
    for index in sorted(instance.promoted):
        value = next(values, None)
        if value is not None:
            instance.promoted[index] = value


def _apply_proxies(instance: Instance, host: UiNode, sources: list[tuple[str, str] | None]) -> None:
    proxies = host.properties.get("proxyWidgets")
    if not isinstance(proxies, list):
        return
    names = {slot.name: index for index, slot in enumerate(instance.scope.inputs)}
    for position, pair in enumerate(proxies):
        if not isinstance(pair, list) or len(pair) < 2 or position >= len(host.values):
            continue
        value = host.values[position]
        node_id, widget = str(pair[0]), str(pair[1])
        if value is None:
            continue
        if node_id == "-1":
            if names.get(widget) in instance.promoted:
                instance.promoted[names[widget]] = value
            continue
        if (node_id, widget) not in sources and (match := _PREFIX.fullmatch(widget)):
            widget = match[1]
        if (node_id, widget) in sources:
            instance.promoted[sources.index((node_id, widget))] = value
        elif node_id in instance.children:
            _override_child(instance.children[node_id], widget, value)
        else:
            instance.overrides[node_id, widget] = value


def _override_child(child: Instance, widget: str, value: JSON) -> None:
    for index, slot in enumerate(child.scope.inputs):
        if index in child.promoted and slot.name == widget:
            child.promoted[index] = value
            return
