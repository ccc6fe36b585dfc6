"""Small editor workflows for tests, written as the editor writes them."""

from __future__ import annotations

from typing import Any

Ui = dict[str, Any]
Sockets = list[Any]


def link(number: int, origin: int, slot: int, target: int, target_slot: int, kind: str = "*") -> list[Any]:
    return [number, origin, slot, target, target_slot, kind]


def node(
    number: int,
    kind: str,
    *,
    values: Any = None,
    inputs: Sockets | None = None,
    outputs: list[str] | None = None,
    mode: int = 0,
    properties: Ui | None = None,
) -> Ui:
    """inputs: (name, type, link) or (name, type, link, widget)."""
    sockets: list[Ui] = []
    for name, socket_type, number_of_link, *widget in inputs or ():
        socket: Ui = {"name": name, "type": socket_type, "link": number_of_link}
        if widget:
            socket["widget"] = {"name": widget[0]}
        sockets.append(socket)
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "inputs": sockets,
        "outputs": [{"name": o, "type": o, "links": []} for o in outputs or ()],
        "properties": properties or {},
        "widgets_values": [] if values is None else values,
    }


def host(number: int, definition: str, **parts: Any) -> Ui:
    """A node that stands for a subgraph."""
    return node(number, definition, **parts)


def workflow(
    *nodes: Ui, links: Sockets | None = None, definitions: list[Ui] | None = None, last_node_id: int = 0
) -> Ui:
    ui: Ui = {"last_node_id": last_node_id, "nodes": list(nodes), "links": links or [], "version": 0.4}
    if definitions:
        ui["definitions"] = {"subgraphs": definitions}
    return ui


def subgraph(
    name: str,
    *nodes: Ui,
    inputs: list[tuple[str, str]] | None = None,
    outputs: list[tuple[str, str]] | None = None,
    links: Sockets | None = None,
) -> Ui:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {
        "id": name,
        "name": name,
        "nodes": list(nodes),
        "links": [dict(zip(keys, entry, strict=True)) for entry in links or ()],
        "inputs": [{"name": n, "type": t} for n, t in inputs or ()],
        "outputs": [{"name": n, "type": t} for n, t in outputs or ()],
        "inputNode": {"id": -10},
        "outputNode": {"id": -20},
    }
