"""Group nodes (`workflow>Name`), the editor's older way to fold nodes, rewritten as subgraphs.

A group's definition lists its nodes and the links among them by position. What is left over becomes the
group node's sockets and values. The editor's rules for their order (`groupNode` of its frontend):

- sockets: inputs without a link inside, node by node as their classes order them, without hidden ones;
  behind those, widgets that were turned into inputs and have no link inside.
- values: every widget that was not turned into an input, node by node, hidden ones too; behind those, the
  turned ones without a link inside. Seeds are followed by their control. An inner Primitive has a value of
  its own. A class that nobody knows has as many values as the definition saved for it.
- outputs: those that are not used up inside, unless the definition says otherwise.

Each group node gets a definition of its own, whose nodes hold the group node's values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON
from loraloom.workflow.routes import PRIMITIVE, REROUTES, VIRTUAL
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.ui_document import GROUP_PREFIXES as PREFIXES
from loraloom.workflow.ui_document import UiNode, read_node
from loraloom.workflow.widgets import CONTROL_VALUES, has_control, saved_values, takes_upload

Raw: TypeAlias = "dict[str, JSON]"


@dataclass(frozen=True, slots=True)
class _Place:
    """One place in a group node's list of values. widget: of the inner node; None where it has no name.

    control: of the seed before. sure: whether every editor wrote it; others are there if values are left.
    """

    node: int
    widget: str | None = None
    control: bool = False
    sure: bool = True


@dataclass(slots=True)
class _Group:
    """What a definition says, in the order of its group node.

    links: (inner node, output, inner node, name of the input). sockets: (what the group node calls it, inner
    node, input); widgets: the same for those that have a value there. own: values of known classes by name.
    """

    name: str
    nodes: list[Raw]
    links: list[tuple[int, int, int, str]] = field(default_factory=lambda: list[tuple[int, int, int, str]]())
    sockets: list[tuple[str, int, str]] = field(default_factory=lambda: list[tuple[str, int, str]]())
    widgets: dict[str, tuple[int, str]] = field(default_factory=lambda: dict[str, tuple[int, str]]())
    places: list[_Place] = field(default_factory=lambda: list[_Place]())
    outputs: list[tuple[int, int]] = field(default_factory=lambda: list[tuple[int, int]]())
    own: dict[int, dict[str, JSON]] = field(default_factory=lambda: dict[int, dict[str, JSON]]())


def without_group_nodes(data: Raw, schemas: Mapping[str, NodeSchema]) -> tuple[Raw, tuple[str, ...]]:
    """The workflow with every group node as a subgraph, and notes on values that do not add up.

    The same object if there are no group nodes."""
    extra = data.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, dict) else None
    nodes = data.get("nodes")
    if not isinstance(groups, dict) or not groups or not isinstance(nodes, list):
        return data, ()
    known: dict[str, _Group] = {}
    hosts: list[JSON] = []
    made: list[JSON] = []
    notes: list[str] = []
    for node in nodes:
        kind = str(node.get("type")) if isinstance(node, dict) else ""
        name = kind[len(PREFIXES[0]) :]
        if not isinstance(node, dict) or not kind.startswith(PREFIXES) or name not in groups:
            hosts.append(node)
            continue
        if name not in known:
            known[name] = _Reading(name, groups[name], schemas).group()
        host, definition, note = _unfolded(node, known[name], f"{kind}#{len(made)}")
        hosts.append(host)
        made.append(definition)
        notes += [f"group node “{name}” (node {node.get('id')}): {note}"] if note else []
    if not made:
        return data, ()
    definitions = data.get("definitions")
    others = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    subgraphs = [*(others if isinstance(others, list) else []), *made]
    return {**data, "nodes": hosts, "definitions": {"subgraphs": subgraphs}}, tuple(notes)


class _Reading:
    """A definition on its way to the order of its group node's sockets and values."""

    def __init__(self, name: str, raw: JSON, schemas: Mapping[str, NodeSchema]) -> None:
        nodes = raw.get("nodes") if isinstance(raw, dict) else None
        links = raw.get("links") if isinstance(raw, dict) else None
        if not isinstance(raw, dict) or not isinstance(nodes, list) or not isinstance(links, list):
            raise WorkflowError(f"the group node {name!r} has no lists of nodes and links")
        self._found = _Group(name, [])
        self._nodes: list[UiNode] = []
        for index, node in enumerate(nodes):
            if not isinstance(node, dict):
                raise WorkflowError(f"node {index} of the group node {name!r} is not an object")
            numbered: Raw = {**node, "id": index}
            self._nodes.append(read_node(numbered, f"node {index} of the group node {name!r}"))
            self._found.nodes.append(numbered)
        self._config = raw.get("config")
        self._schemas = schemas
        self._links = list(_links(links))
        self._arriving = {(target, slot) for _, _, target, slot, _ in self._links}
        self._leaving = {(origin, slot): kind for origin, slot, _, _, kind in self._links}
        external = raw.get("external")
        self._external = {
            (str(entry[0]), str(entry[1]))
            for entry in (external if isinstance(external, list) else ())
            if isinstance(entry, list) and len(entry) > 1
        }
        self._names: Counter[str] = Counter()
        self._turned: list[tuple[int, str, bool]] = []

    def group(self) -> _Group:
        for index, node in enumerate(self._nodes):
            self._node(index, node)
        for index, widget, control in self._turned:
            called = self._called(index, widget)
            self._found.sockets.append((called, index, widget))
            self._place(index, widget, called, control=control)
        for origin, slot, target, target_slot, _ in self._links:
            name = self._input(target, target_slot)
            if name is not None and origin < len(self._nodes):
                self._found.links.append((origin, slot, target, name))
        return self._found

    def _input(self, index: int, slot: int) -> str | None:
        """The name of an inner node's input; None if there is none."""
        if index >= len(self._nodes):
            return None
        node = self._nodes[index]
        if slot < len(node.inputs):
            return node.inputs[slot].name
        if node.type in REROUTES:
            return ""
        schema = self._schemas.get(node.type)
        names = [entry.name for entry in schema.inputs if not entry.is_widget] if schema else []
        return names[slot] if slot < len(names) else None

    def _node(self, index: int, node: UiNode) -> None:
        schema = self._schemas.get(node.type)
        if schema is not None:
            self._widgets(index, node, schema)
            self._sockets(index, [entry.name for entry in schema.inputs if not entry.is_widget])
            self._outputs(index, len(schema.outputs))
        elif node.type == PRIMITIVE:
            self._primitive(index)
        elif node.type in REROUTES:
            inner = (index, 0) in self._arriving and (index, 0) in self._leaving
            if not inner or (str(index), "0") in self._external:
                self._sockets(index, [""])
                self._outputs(index, 1)
        elif node.type not in VIRTUAL:
            self._found.places += [_Place(index)] * len(node.values)
            self._sockets(index, [slot.name for slot in node.inputs if slot.widget is None])
            self._outputs(index, len(node.outputs))

    def _widgets(self, index: int, node: UiNode, schema: NodeSchema) -> None:
        """The widgets of a class: turned into inputs, or with a value each. Those that the class got after
        the definition was saved have none."""
        saved = self._found.own[index] = saved_values(node, schema)
        sockets = {slot.name: at for at, slot in enumerate(node.inputs) if slot.widget == slot.name}
        turned: list[tuple[int, str, bool]] = []
        upload = takes_upload(schema)
        for entry in schema.widgets():
            if upload and not entry.required:
                self._found.places.append(_Place(index, sure=False))
                upload = False
            if entry.name in sockets:
                turned.append((sockets[entry.name], entry.name, has_control(entry)))
            elif not saved or entry.name in saved:
                self._place(index, entry.name, self._called(index, entry.name), control=has_control(entry))
        if upload:
            self._found.places.append(_Place(index, sure=False))
        self._turned += [
            (index, name, control)
            for slot, name, control in sorted(turned)
            if (index, slot) not in self._arriving
        ]

    def _place(self, index: int, widget: str, called: str, *, control: bool) -> None:
        self._found.widgets[called] = (index, widget)
        self._found.places.append(_Place(index, widget))
        if control:
            self._found.places.append(_Place(index, control=True))

    def _sockets(self, index: int, names: list[str]) -> None:
        """The inputs of a node that are no widgets: those without a link inside and not hidden."""
        saved = [slot.name for slot in self._nodes[index].inputs]
        for position, name in enumerate(names):
            slot = saved.index(name) if name in saved else position
            if (index, slot) in self._arriving:
                continue
            called = self._called(index, name)
            if self._said(index, "input", name).get("visible") is not False:
                self._found.sockets.append((called, index, name))

    def _outputs(self, index: int, count: int) -> None:
        """The outputs that are not used up inside, unless the author said otherwise."""
        for slot in range(count):
            used_up = (index, slot) in self._leaving and (str(index), str(slot)) not in self._external
            said = self._said(index, "output", str(slot)).get("visible")
            if said if isinstance(said, bool) else not used_up:
                self._found.outputs.append((index, slot))

    def _primitive(self, index: int) -> None:
        """A Primitive that is used inside: a value, with the control (and filter) that its type has."""
        kind = self._leaving.get((index, 0))
        if kind is None:
            return
        self._place(index, "value", self._called(index, "value"), control=kind in ("INT", "COMBO"))
        if kind == "COMBO":
            self._found.places.append(_Place(index, sure=False))
        self._outputs(index, 1)

    def _called(self, index: int, name: str) -> str:
        """What the group node calls an input of an inner node: its own name, while that is free."""
        node = self._nodes[index]
        raw = self._found.nodes[index].get("inputs")
        labels = [
            slot.get("label")
            for slot in (raw if isinstance(raw, list) else ())
            if isinstance(slot, dict) and slot.get("name") == name
        ]
        said = (self._said(index, "input", name).get("name"), *labels)
        key = called = next((text for text in said if isinstance(text, str)), name)
        if (node.type == PRIMITIVE and node.title) or called in self._names:
            key = called = f"{node.title or node.type} {name}"
            if called in self._names:
                called = f"{node.title or node.type} {self._names[called]} {name}"
        self._names[key] = max(1, self._names[key]) + 1
        return called

    def _said(self, index: int, side: str, name: str) -> Raw:
        """What the author said of an input or output in the group's settings."""
        config = self._config
        for part in (str(index), side, name):
            config = config.get(part) if isinstance(config, dict) else None
        return config if isinstance(config, dict) else {}


def _unfolded(host: Raw, group: _Group, definition_id: str) -> tuple[Raw, Raw, str]:
    """One group node as a host, its definition with its values, and what does not add up ("" if all does)."""
    named, unnamed, note = _given(host.get("widgets_values"), group)
    nodes: list[Raw] = []
    for index, node in enumerate(group.nodes):
        values = node.get("widgets_values")
        if index in group.own:
            values = {**group.own[index], **named.get(index, {})}
        elif index in named or index in unnamed:
            values = [*named.get(index, {}).values(), *unnamed.get(index, [])]
        slots: list[JSON] = [{**slot, "link": None} for slot in _objects(node.get("inputs"))]
        nodes.append({**node, "inputs": slots, "widgets_values": values})
    wires: list[JSON] = []
    for origin, slot, target, name in group.links:
        wires.append(
            [len(wires) + 1, origin, slot, target, _joined(nodes[target], name, len(wires) + 1), "*"]
        )
    sockets: list[JSON] = []
    inputs: list[JSON] = []
    for slot, (index, name) in _bound(host, group):
        position = _joined(nodes[index], name, len(wires) + 1)
        wires.append([len(wires) + 1, -10, len(inputs), index, position, "*"])
        sockets.append({"name": str(len(inputs)), "type": slot.get("type"), "link": slot.get("link")})
        inputs.append({"name": str(len(inputs)), "type": slot.get("type")})
    outputs: list[JSON] = []
    for index, slot in group.outputs:
        wires.append([len(wires) + 1, index, slot, -20, len(outputs), "*"])
        outputs.append({"name": str(len(outputs)), "type": "*"})
    definition: Raw = {
        "id": definition_id, "name": group.name, "nodes": [*nodes], "links": wires,
        "inputs": inputs, "outputs": outputs,
    }  # fmt: skip
    return {**host, "type": definition_id, "inputs": sockets, "widgets_values": []}, definition, note


def _given(values: JSON, group: _Group) -> tuple[dict[int, dict[str, JSON]], dict[int, list[JSON]], str]:
    """The values of a group node: by inner node and widget, by inner node of an unknown class, and a note."""
    named: dict[int, dict[str, JSON]] = {}
    unnamed: dict[int, list[JSON]] = {}
    if isinstance(values, dict):
        for called, (index, widget) in group.widgets.items():
            if called in values:
                named.setdefault(index, {})[widget] = values[called]
        return named, unnamed, ""
    rest = list(reversed(values)) if isinstance(values, list) else []
    expected = sum(place.sure for place in group.places)
    spare = len(rest) - expected
    for place in group.places:
        if not rest:
            break
        if place.control and spare < 0 and rest[-1] not in CONTROL_VALUES:
            spare += 1
        elif place.sure or spare > 0:
            spare -= not place.sure
            value = rest.pop()
            if place.widget is not None:
                named.setdefault(place.node, {})[place.widget] = value
            elif place.sure and not place.control:
                unnamed.setdefault(place.node, []).append(value)
    odd = isinstance(values, list) and values and spare != 0
    return named, unnamed, f"{expected + spare} values for {expected} widgets; read in order" if odd else ""


def _bound(host: Raw, group: _Group) -> Iterator[tuple[Raw, tuple[int, str]]]:
    """The group node's linked sockets with the inner input that each stands for: by its name, else by its
    place, since an author may have renamed it."""
    known = {**group.widgets, **{called: (index, name) for called, index, name in group.sockets}}
    for position, slot in enumerate(_objects(host.get("inputs"))):
        inner = known.get(str(slot.get("name")))
        if inner is None and position < len(group.sockets):
            inner = group.sockets[position][1:]
        if inner is not None and slot.get("link") is not None:
            yield slot, inner


def _joined(node: Raw, name: str, link: int) -> int:
    """Leads a link to an input of a node, which may need a socket for it; returns the socket's place."""
    sockets = node["inputs"]
    if not isinstance(sockets, list):
        return -1
    found = next(
        (at for at, slot in enumerate(sockets) if isinstance(slot, dict) and slot.get("name") == name), -1
    )
    if found < 0:
        found = len(sockets)
        sockets.append({"name": name, "type": "*", "widget": {"name": name}})
    socket = sockets[found]
    sockets[found] = {**socket, "link": link} if isinstance(socket, dict) else socket
    return found


def _objects(raw: JSON) -> list[Raw]:
    return [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []


def _links(raw: list[JSON]) -> Iterator[tuple[int, int, int, int, str]]:
    """The links among the nodes inside, with their types; those that come from outside have no origin."""
    for entry in raw:
        ends = [end for end in entry[:4] if type(end) is int and end >= 0] if isinstance(entry, list) else []
        if isinstance(entry, list) and len(ends) == 4:
            kind = entry[5] if len(entry) > 5 else None
            yield ends[0], ends[1], ends[2], ends[3], kind if isinstance(kind, str) else "*"
