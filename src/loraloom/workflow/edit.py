"""Changes that a user makes to a workflow from outside: `NODE.input=value` and the seed."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from loraloom.errors import InputError
from loraloom.workflow.graph import JSON, Graph, GraphNode, Link
from loraloom.workflow.schema import Input, NodeSchema
from loraloom.workflow.validate import InvalidValue, check_range, convert
from loraloom.workflow.widgets import has_control

_TRUE, _FALSE = ("true", "yes", "on", "1", "enable"), ("false", "no", "off", "0", "disable")


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `NODE.input=value` of the command line. `node` is an id, a title or a class name."""

    node: str
    input: str
    value: str


def read_assignment(text: str) -> Assignment:
    """The parts of `NODE.input=value`; the node's name may contain dots. Raises InputError."""
    left, equals, value = text.partition("=")
    node, dot, name = left.rpartition(".")
    if not equals or not dot or not node.strip() or not name.strip():
        raise InputError(
            f"{text!r} is not an assignment; expected NODE.input=value, for example 3.steps=20 or "
            '"KSampler.seed=7" (NODE is an id, a title or a class name)'
        )
    return Assignment(node.strip(), name.strip(), value)


def apply_assignments(graph: Graph, schemas: Mapping[str, NodeSchema], texts: Iterable[str]) -> Graph:
    """The graph with every `NODE.input=value` applied, in order. Raises InputError."""
    for text in texts:
        assignment = read_assignment(text)
        node, name = _target(graph, schemas, assignment)
        value = _value(assignment, node, name, schemas.get(node.class_type))
        graph = graph.with_inputs(node.id, {name: value})
    return graph


def find_node(graph: Graph, name: str) -> GraphNode:
    """The node that an id, a title or a class name means; raises InputError with the candidates."""
    if name in graph.nodes:
        return graph.nodes[name]
    nodes = list(graph.nodes.values())
    for of in (
        [n for n in nodes if n.title == name],
        [n for n in nodes if n.class_type == name],
        [n for n in nodes if (n.title or "").lower() == name.lower() or n.class_type.lower() == name.lower()],
    ):
        if len(of) == 1:
            return of[0]
        if of:
            listing = "".join(f"\n  {node.id}  {node.label()}" for node in of)
            raise InputError(f"{name!r} names {len(of)} nodes; use one of their ids:{listing}")
    known = dict.fromkeys(text for n in nodes for text in (n.id, n.title or "", n.class_type) if text)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Nearest: {', '.join(close)}." if close else ""
    listing = "".join(f"\n  {node.id}  {node.label()}" for node in nodes[:40])
    raise InputError(f"the workflow has no node {name!r}.{hint} Its nodes:{listing}")


def seed_inputs(graph: Graph, schemas: Mapping[str, NodeSchema]) -> list[tuple[str, str]]:
    """The (node id, input name) pairs that hold a seed as a value."""
    found: list[tuple[str, str]] = []
    for node in graph.nodes.values():
        schema = schemas.get(node.class_type)
        for name, value in node.inputs.items():
            entry = schema.input(name) if schema else None
            seed = name in ("seed", "noise_seed") or (
                entry is not None and entry.type == "INT" and "seed" in name and has_control(entry)
            )
            if seed and not isinstance(value, Link) and isinstance(value, int | str):
                found.append((node.id, name))
    return found


def set_seed(graph: Graph, schemas: Mapping[str, NodeSchema], seed: int) -> Graph:
    """The graph with every seed set to the same number.

    A seed that comes over a link is set at its origin when that is a whole-number node. Raises InputError
    if the workflow has no seed, or it is no whole number within a seed's range.
    """
    try:
        seed = operator.index(seed)
    except TypeError:
        raise InputError(
            f"the seed {seed!r} is not a whole number; expected one from 0 to {(1 << 64) - 1}"
        ) from None
    if not 0 <= seed < 1 << 64:
        raise InputError(f"the seed {seed} is out of range; expected a number from 0 to {(1 << 64) - 1}")
    targets = seed_inputs(graph, schemas)
    for node in graph.nodes.values():
        for name, value in node.inputs.items():
            if name in ("seed", "noise_seed") and isinstance(value, Link) and value.node in graph.nodes:
                origin = graph.nodes[value.node]
                if isinstance(origin.inputs.get("value"), int):
                    targets.append((origin.id, "value"))
    if not targets:
        raise InputError("the workflow has no seed to set: no node has a value for seed or noise_seed")
    for node_id, name in dict.fromkeys(targets):
        graph = graph.with_inputs(node_id, {name: seed})
    return graph


def _target(graph: Graph, schemas: Mapping[str, NodeSchema], assignment: Assignment) -> tuple[GraphNode, str]:
    """The node and input of an assignment. Input names may contain dots: the longest node name wins."""
    whole = f"{assignment.node}.{assignment.input}"
    cuts = [i for i, sign in enumerate(whole) if sign == "."]
    for cut in reversed(cuts):
        if whole[:cut] in graph.nodes and whole[cut + 1 :] in graph.nodes[whole[:cut]].inputs:
            return graph.nodes[whole[:cut]], whole[cut + 1 :]
    node = find_node(graph, assignment.node)
    schema = schemas.get(node.class_type)
    declared = [i.name for i in schema.inputs] if schema else []
    names = list(dict.fromkeys((*declared, *node.inputs)))
    if assignment.input in names:
        return node, assignment.input
    close = get_close_matches(assignment.input, names, n=3, cutoff=0.5)
    hint = f" Nearest: {', '.join(close)}." if close else ""
    raise InputError(f"{node.label()} has no input {assignment.input!r}.{hint} It has: {', '.join(names)}")


def _value(assignment: Assignment, node: GraphNode, name: str, schema: NodeSchema | None) -> JSON:
    entry = schema.input(name) if schema else None
    text = assignment.value
    if entry is None:
        return _guess(text, node.inputs.get(name))
    where = f"{node.label()}, input {name}"
    if entry.type == "BOOLEAN":
        if text.strip().lower() in _TRUE:
            return True
        if text.strip().lower() in _FALSE:
            return False
        raise InputError(f"{where}: {text!r} is neither true nor false")
    if entry.type == "COMBO":
        return next((c for c in entry.choices if not isinstance(c, str) and str(c) == text), text)
    try:
        value = convert(entry, text)
        check_range(entry, value)
    except InvalidValue as error:
        raise InputError(f"{where}: {text!r} does not fit ({_expected(entry)})") from error
    return value


def _expected(entry: Input) -> str:
    kind = {"INT": "a whole number", "FLOAT": "a number"}.get(entry.type, f"a link of type {entry.type}")
    low, high = entry.options.get("min"), entry.options.get("max")
    return f"expected {kind}" + (f" from {low} to {high}" if low is not None and high is not None else "")


def _guess(text: str, present: object) -> JSON:
    """A value for an input that no class describes: of the kind that is there now, or what it looks like."""
    if isinstance(present, str):
        return text
    try:
        value: JSON = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
