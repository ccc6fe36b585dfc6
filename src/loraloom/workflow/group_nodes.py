"""Group nodes (`workflow>Name`), the editor's older way to fold nodes, rewritten as subgraphs.

A group's definition lists its nodes and the links among them by position. What is left over becomes the
group node's sockets and widgets, in the order of the nodes inside: inputs without a link, outputs that are
not used up inside, and every widget that was not turned into an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.ui_document import GROUP_PREFIXES as PREFIXES
from loraloom.workflow.widgets import CONTROL, has_control


@dataclass(slots=True)
class _Group:
    """A group as a subgraph definition, and what its host's values belong to."""

    definition: dict[str, JSON]
    widgets: list[JSON] = field(default_factory=lambda: list[JSON]())


def without_group_nodes(data: dict[str, JSON], schemas: Mapping[str, NodeSchema]) -> dict[str, JSON]:
    """The workflow with every group as a subgraph definition; the same object if there are none."""
    extra = data.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, dict) else None
    nodes = data.get("nodes")
    if not isinstance(groups, dict) or not groups or not isinstance(nodes, list):
        return data
    kinds = [str(n.get("type")) for n in nodes if isinstance(n, dict)]
    made: dict[str, _Group] = {}
    for kind in dict.fromkeys(k for k in kinds if k.startswith(PREFIXES)):
        name = kind[len(PREFIXES[0]) :]
        if name in groups:
            made[kind] = _group(kind, groups[name], schemas)
    if not made:
        return data
    hosts: list[JSON] = []
    for node in nodes:
        group = made.get(str(node.get("type"))) if isinstance(node, dict) else None
        hosts.append(_host(node, group) if isinstance(node, dict) and group is not None else node)
    definitions = data.get("definitions")
    others = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    listed: list[JSON] = [group.definition for group in made.values()]
    subgraphs = [*(others if isinstance(others, list) else []), *listed]
    return {**data, "nodes": hosts, "definitions": {"subgraphs": subgraphs}}


def _host(node: dict[str, JSON], group: _Group) -> dict[str, JSON]:
    """The group node as a host: its values belong to the widgets in their order."""
    properties = node.get("properties")
    kept = properties if isinstance(properties, dict) else {}
    names = group.definition["inputs"]
    sockets: list[JSON] = []
    own = node.get("inputs")
    for index, slot in enumerate(own if isinstance(own, list) else []):
        # Sockets keep their order; only their names may have been changed by the author.
        known = names[index] if isinstance(names, list) and index < len(names) else None
        if isinstance(slot, dict) and isinstance(known, dict):
            slot = {**slot, "name": known["name"]}
        sockets.append(slot)
    return {**node, "inputs": sockets, "properties": {**kept, "proxyWidgets": group.widgets}}


def _group(kind: str, raw: JSON, schemas: Mapping[str, NodeSchema]) -> _Group:
    nodes = raw.get("nodes") if isinstance(raw, dict) else None
    links = raw.get("links") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(nodes, list) or not isinstance(links, list):
        raise WorkflowError(f"the group node {kind!r} has no lists of nodes and links")
    inner = _links(links)
    arriving = {(link[2], link[3]) for link in inner}
    leaving = {(link[0], link[1]) for link in inner}
    exposed = {(str(e[0]), str(e[1])) for e in _entries(raw.get("external")) if len(e) > 1}
    out = _Group({"id": kind, "name": kind[len(PREFIXES[0]) :]})
    numbered: list[JSON] = []
    inputs: list[JSON] = []
    outputs: list[JSON] = []
    wires: list[JSON] = [[n, *link[:4], "*"] for n, link in enumerate(inner, 1)]
    for index, node in enumerate(nodes):
        if not isinstance(node, dict):
            raise WorkflowError(f"node {index} of the group node {kind!r} is not an object")
        schema = schemas.get(str(node.get("type")))
        sockets = _sockets(node, schema)
        for slot, socket in enumerate(sockets):
            if (index, slot) not in arriving and not _hidden(raw, index, "input", socket["name"]):
                inputs.append({"name": f"{len(inputs)}", "type": socket.get("type")})
                wires.append([len(wires) + 1, -10, len(inputs) - 1, index, slot, "*"])
        for slot in range(_output_count(node, schema)):
            used_up = (index, slot) in leaving and (str(index), str(slot)) not in exposed
            if not used_up and not _hidden(raw, index, "output", str(slot)):
                outputs.append({"name": f"{len(outputs)}", "type": "*"})
                wires.append([len(wires) + 1, index, slot, -20, len(outputs) - 1, "*"])
        out.widgets.extend(_widgets(raw, index, schema, sockets))
        numbered.append({**node, "id": index, "inputs": list(sockets)})
    _connect(numbered, wires)
    out.definition.update(nodes=numbered, links=wires, inputs=inputs, outputs=outputs)
    return out


def _connect(nodes: list[JSON], wires: list[JSON]) -> None:
    """Writes the links' numbers into the sockets that they lead to."""
    for wire in wires:
        if not isinstance(wire, list) or wire[3] == -20:
            continue
        node = nodes[wire[3]] if isinstance(wire[3], int) and wire[3] < len(nodes) else None
        sockets = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(sockets, list) and isinstance(wire[4], int) and wire[4] < len(sockets):
            socket = sockets[wire[4]]
            sockets[wire[4]] = {**socket, "link": wire[0]} if isinstance(socket, dict) else socket


def _sockets(node: dict[str, JSON], schema: NodeSchema | None) -> list[dict[str, JSON]]:
    """The sockets of a node inside, as its class orders them, then widgets turned into inputs."""
    own = node.get("inputs")
    saved = [s for s in own if isinstance(s, dict)] if isinstance(own, list) else []
    if schema is None:
        return [{**s, "name": str(s.get("name")), "link": None} for s in saved]
    plain: list[dict[str, JSON]] = [
        {"name": i.name, "type": i.type, "link": None} for i in schema.inputs if not i.is_widget
    ]
    names = {str(s["name"]) for s in plain}
    turned = [s for s in saved if str(s.get("name")) not in names and s.get("widget")]
    return plain + [{**s, "name": str(s.get("name")), "link": None} for s in turned]


def _widgets(
    raw: dict[str, JSON], index: int, schema: NodeSchema | None, sockets: list[dict[str, JSON]]
) -> list[JSON]:
    """The (node, widget) pairs that the group node holds values for."""
    if schema is None:
        return []
    turned = {str(socket["name"]) for socket in sockets}
    out: list[JSON] = []
    for entry in schema.widgets():
        if entry.name in turned or _hidden(raw, index, "input", entry.name):
            continue
        out.append([f"{index}", entry.name])
        if has_control(entry):
            out.append([f"{index}", CONTROL])
    return out


def _hidden(raw: dict[str, JSON], index: int, side: str, name: JSON) -> bool:
    """Whether the group's author hid this input or output."""
    config = raw.get("config")
    for part in (str(index), side, str(name)):
        config = config.get(part) if isinstance(config, dict) else None
    return isinstance(config, dict) and config.get("visible") is False


def _output_count(node: dict[str, JSON], schema: NodeSchema | None) -> int:
    own = node.get("outputs")
    saved = len(own) if isinstance(own, list) else 0
    return len(schema.outputs) if schema is not None else saved


def _entries(raw: JSON) -> list[list[JSON]]:
    return [e for e in raw if isinstance(e, list)] if isinstance(raw, list) else []


def _links(raw: list[JSON]) -> list[list[int]]:
    """The links among the nodes inside; those that come from outside have no origin."""
    out: list[list[int]] = []
    for entry in _entries(raw):
        ends = [end for end in entry[:4] if isinstance(end, int)]
        if len(ends) == 4:
            out.append(ends)
    return out
