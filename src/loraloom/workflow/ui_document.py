"""An editor's workflow (UI format 0.4 and 1.0) as typed records, before any meaning is given to it.

The JSON is a stranger's: ids may be numbers or text, links arrays or objects, lists may be missing. What
cannot be read is refused with its place; what can be read in one sensible way is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON, kind_of

NEVER, BYPASS = 2, 4
INPUT_NODE, OUTPUT_NODE = "-10", "-20"
GROUP_PREFIXES = ("workflow>", "workflow/")
NO_LINKS: Mapping[tuple[str, int], list[UiLink]] = {}


@dataclass(frozen=True, slots=True)
class Slot:
    """One socket of a node. `widget` names the widget that it stands for, if any."""

    name: str
    type: str
    link: str | None = None
    widget: str | None = None


@dataclass(frozen=True, slots=True)
class UiNode:
    """One node as the editor saved it."""

    id: str
    type: str
    title: str | None
    mode: int
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    values: tuple[JSON, ...]
    named_values: Mapping[str, JSON] | None
    properties: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class UiLink:
    """One link. Inside a definition `-10` is its input side and `-20` its output side."""

    id: str
    origin: str
    origin_slot: int
    target: str
    target_slot: int
    type: str


@dataclass(frozen=True, slots=True)
class Scope:
    """The nodes and links of one level: the workflow itself, or the definition of a subgraph.

    arrivals, departures: links by the slot they lead to, and (of the input side) by the slot they leave.
    """

    name: str
    nodes: Mapping[str, UiNode]
    links: Mapping[str, UiLink]
    inputs: tuple[Slot, ...] = ()
    outputs: tuple[Slot, ...] = ()
    arrivals: Mapping[tuple[str, int], list[UiLink]] = field(default_factory=lambda: NO_LINKS)
    departures: Mapping[tuple[str, int], list[UiLink]] = field(default_factory=lambda: NO_LINKS)


@dataclass(frozen=True, slots=True)
class Document:
    """A whole workflow: the root level and the definitions by id."""

    root: Scope
    definitions: Mapping[str, Scope]
    notes: tuple[str, ...]


def is_ui(data: JSON) -> bool:
    """Whether a JSON value looks like an editor's workflow."""
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def read_document(data: dict[str, JSON]) -> Document:
    """The typed records of a workflow; raises WorkflowError that names the place of what is wrong."""
    notes: list[str] = []
    definitions: dict[str, Scope] = {}
    for index, entry in enumerate(subgraph_definitions(data)):
        scope = _scope(entry, f"subgraph “{entry.get('name') or index}”", notes)
        definitions.setdefault(_identity(entry.get("id"), f"subgraph definition {index}"), scope)
    root = _scope(data, "the workflow", notes)
    document = Document(root, definitions, tuple(notes))
    return with_unique_ids(document, _last_id(data)) if definitions else document


def subgraph_definitions(data: dict[str, JSON]) -> list[dict[str, JSON]]:
    """The definitions of a workflow, with those that definitions hold themselves behind each of them."""
    out: list[dict[str, JSON]] = []
    stack: list[JSON] = [data]
    while stack:
        entry = stack.pop()
        if not isinstance(entry, dict):
            raise WorkflowError(f"a subgraph definition is {kind_of(entry)}; expected a JSON object")
        if entry is not data:
            out.append(entry)
        definitions = entry.get("definitions")
        found = definitions.get("subgraphs") if isinstance(definitions, dict) else None
        stack.extend(reversed(list(found.values()) if isinstance(found, dict) else _list(found)))
    return out


def _last_id(data: dict[str, JSON]) -> int:
    state = data.get("state")
    last = state.get("lastNodeId") if isinstance(state, dict) else data.get("last_node_id")
    return last if isinstance(last, int) else 0


def _scope(data: dict[str, JSON], name: str, notes: list[str]) -> Scope:
    raw_nodes = data.get("nodes")
    if not isinstance(raw_nodes, list):
        raise WorkflowError(f"{name} has no list of nodes")
    nodes: dict[str, UiNode] = {}
    for index, raw in enumerate(raw_nodes):
        node = read_node(_object(raw, f"node {index} of {name}"), f"node {index} of {name}")
        if node.id in nodes:
            notes.append(f"{name} has two nodes with id {node.id}; the second ({node.type}) was left out")
            continue
        nodes[node.id] = node
    inputs = tuple(_slot(raw) for raw in _list(data.get("inputs")))
    outputs = tuple(_slot(raw) for raw in _list(data.get("outputs")))
    links, arrivals, departures = _indexed(_links(data.get("links"), name))
    return Scope(name, nodes, links, inputs, outputs, arrivals, departures)


_Index: TypeAlias = "dict[tuple[str, int], list[UiLink]]"


def _indexed(found: list[UiLink]) -> tuple[dict[str, UiLink], _Index, _Index]:
    """Links by id, by the slot they lead to, and (of the input side) by the slot they leave."""
    links: dict[str, UiLink] = {}
    arrivals: _Index = {}
    departures: _Index = {}
    for link in found:
        links[link.id] = link
        arrivals.setdefault((link.target, link.target_slot), []).append(link)
        if link.origin == INPUT_NODE:
            departures.setdefault((link.origin, link.origin_slot), []).append(link)
    return links, arrivals, departures


def read_node(data: dict[str, JSON], place: str) -> UiNode:
    """A node's record; WorkflowError names `place` where it has no id or type."""
    kind = data.get("type")
    if not isinstance(kind, str) or not kind:
        raise WorkflowError(f"{place} has no type; expected the name of a node class")
    mode = data.get("mode", 0)
    title = data.get("title")
    values, named = data.get("widgets_values"), data.get("widgets_values_named")
    if isinstance(values, dict):
        values, named = [], values
    properties = data.get("properties")
    return UiNode(
        id=_identity(data.get("id"), place),
        type=kind,
        title=title if isinstance(title, str) and title else None,
        mode=mode if isinstance(mode, int) else 0,
        inputs=tuple(_slot(raw) for raw in _list(data.get("inputs"))),
        outputs=tuple(_slot(raw) for raw in _list(data.get("outputs"))),
        values=tuple(values) if isinstance(values, list) else (),
        named_values=named if isinstance(named, dict) else None,
        properties=properties if isinstance(properties, dict) else {},
    )


def _slot(raw: JSON) -> Slot:
    data = raw if isinstance(raw, dict) else {}
    widget = data.get("widget")
    widget_name = widget.get("name") if isinstance(widget, dict) else None
    name = data.get("name")
    return Slot(
        name=name if isinstance(name, str) else "",
        type=_type(data.get("type")),
        link=_link_id(data.get("link")),
        widget=widget_name if isinstance(widget_name, str) else None,
    )


def _links(raw: JSON, name: str) -> list[UiLink]:
    entries = list(raw.values()) if isinstance(raw, dict) else _list(raw)
    return [_link(entry, f"link {index} of {name}") for index, entry in enumerate(entries) if entry]


def _link(raw: JSON, place: str) -> UiLink:
    if isinstance(raw, dict):
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        fields = [raw.get(key) for key in keys]
    elif isinstance(raw, list) and len(raw) >= 5:
        fields = [*raw, None][:6]
    else:
        raise WorkflowError(f"{place} is not a link; expected [id, from, slot, to, slot, type]")
    return UiLink(
        id=_identity(fields[0], place),
        origin=_identity(fields[1], place),
        origin_slot=_index(fields[2], place),
        target=_identity(fields[3], place),
        target_slot=_index(fields[4], place),
        type=_type(fields[5]),
    )


def _identity(value: JSON, place: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise WorkflowError(f"{place} has the id {value!r:.40}; expected a number or a text")
    return str(value)


def _link_id(value: JSON) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _index(value: JSON, place: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise WorkflowError(f"{place} names slot {value!r:.40}; expected a whole number from 0")
    return value


def _type(value: JSON) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join(str(v) for v in value) if all(isinstance(v, str) for v in value) else "COMBO"
    return "*"


def _object(raw: JSON, place: str) -> dict[str, JSON]:
    if not isinstance(raw, dict):
        raise WorkflowError(f"{place} is {kind_of(raw)}; expected a JSON object")
    return raw


def _list(raw: JSON) -> list[JSON]:
    return cast("list[Any]", raw) if isinstance(raw, list) else []


def with_unique_ids(document: Document, last_id: int) -> Document:
    """The document with ids that no two levels share.

    The editor keeps ids unique over the workflow and all definitions: a node of a definition whose id is
    taken gets the next free number. Ids of the API format come from the numbers after that.
    """
    taken = set(document.root.nodes)
    numbers = [int(key) for key in taken if key.isascii() and key.isdigit() and len(key) < 10]
    last = max((last_id, *numbers))
    renamed: dict[str, dict[str, str]] = {}
    for key, scope in document.definitions.items():
        if key.startswith(GROUP_PREFIXES):
            continue  # Nodes of a group are numbered from 0 in each.
        changes: dict[str, str] = {}
        for node_id in scope.nodes:
            if node_id in taken:
                last += 1
                while str(last) in taken:
                    last += 1
                changes[node_id] = str(last)
            elif node_id.isascii() and node_id.isdigit() and len(node_id) < 10:
                last = max(last, int(node_id))
            taken.add(changes.get(node_id, node_id))
        if changes:
            renamed[key] = changes
    if not renamed:
        return document
    definitions = {
        k: _renamed(scope, renamed.get(k, {}), renamed) for k, scope in document.definitions.items()
    }
    return replace(document, root=_renamed(document.root, {}, renamed), definitions=definitions)


def _renamed(scope: Scope, changes: dict[str, str], renamed: dict[str, dict[str, str]]) -> Scope:
    """A level with its own nodes renamed, and its hosts' references to nodes inside that were."""
    nodes: dict[str, UiNode] = {}
    for node in scope.nodes.values():
        inner = renamed.get(node.type)
        properties = _proxies(node.properties, inner) if inner else node.properties
        new_id = changes.get(node.id, node.id)
        nodes[new_id] = replace(node, id=new_id, properties=properties)
    moved = [
        replace(x, origin=changes.get(x.origin, x.origin), target=changes.get(x.target, x.target))
        for x in scope.links.values()
    ]
    links, arrivals, departures = _indexed(moved)
    return replace(scope, nodes=nodes, links=links, arrivals=arrivals, departures=departures)


def _proxies(properties: Mapping[str, JSON], inner: dict[str, str]) -> Mapping[str, JSON]:
    proxies = properties.get("proxyWidgets")
    if not isinstance(proxies, list):
        return properties
    pairs: list[JSON] = [
        [inner.get(str(pair[0]), pair[0]), *pair[1:]] if isinstance(pair, list) and pair else pair
        for pair in proxies
    ]
    return {**properties, "proxyWidgets": pairs}
