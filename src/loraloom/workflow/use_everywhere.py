"""Links of the pack Use Everywhere: they are not drawn, the file lists them in `extra.ue_links`."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

from loraloom.workflow.graph import JSON

EVERYWHERE = frozenset(
    {"Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?", "Prompts Everywhere"}
)
"""Classes that hand what they receive to inputs of other nodes that have no link."""

_ADDED = "links_added_by_ue"
"""Where newer versions name the links that they drew; those stand among the others."""


def with_everywhere_links(
    data: dict[str, JSON], definitions: list[dict[str, JSON]]
) -> tuple[dict[str, JSON], tuple[str, ...]]:
    """The workflow with the listed links among its own, and a note on each level that lists none.

    definitions: its subgraphs, objects within `data`. The same object if there is nothing to add."""
    levels = [data, *definitions]
    notes = tuple(note for level in levels if (note := _unlisted(level)) is not None)
    if not any(_listed(level) for level in levels):
        return data, notes
    memo: dict[int, object] = {}
    copied = deepcopy(data, memo)
    for level in levels:
        made = memo.get(id(level))
        if isinstance(made, dict):
            _add_links(made)
    return copied, notes


def _add_links(level: dict[str, JSON]) -> None:
    links = level.get("links")
    nodes = {str(node.get("id")): node for node in _objects(level.get("nodes"))}
    for number, (origin, output, target, index, kind) in enumerate(_listed(level)):
        inputs = nodes[target].get("inputs") if origin in nodes and target in nodes else None
        socket = inputs[index] if isinstance(inputs, list) and index < len(inputs) else None
        if not isinstance(socket, dict) or socket.get("link") is not None:
            continue
        key = f"everywhere {number}"
        entry: list[JSON] = [key, origin, output, target, index, kind]
        socket["link"] = key
        if isinstance(links, dict):
            links[key] = entry
        elif isinstance(links, list):
            links.append(entry)
        else:
            links = level["links"] = [entry]


def _listed(level: dict[str, JSON]) -> Iterator[tuple[str, int, str, int, JSON]]:
    """(from, output, to, input, type) of every listed link."""
    extra = level.get("extra")
    for entry in _objects(extra.get("ue_links") if isinstance(extra, dict) else None):
        output, index = entry.get("upstream_slot"), entry.get("downstream_slot")
        if type(output) is int and type(index) is int and output >= 0 and index >= 0:
            yield str(entry.get("upstream")), output, str(entry.get("downstream")), index, entry.get("type")


def _unlisted(level: dict[str, JSON]) -> str | None:
    """What to say of a level whose Use Everywhere nodes have their links nowhere."""
    extra = level.get("extra")
    if isinstance(extra, dict) and ("ue_links" in extra or _ADDED in extra):
        return None
    found = next((node for node in _objects(level.get("nodes")) if str(node.get("type")) in EVERYWHERE), None)
    if found is None:
        return None
    return (
        f"node {found.get('id')} ({found.get('type')}) hands its input on in the editor only, and the file"
        " does not list to which nodes (extra.ue_links): save it again with Use Everywhere, or draw the links"
    )


def _objects(raw: JSON) -> list[dict[str, JSON]]:
    return [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []
