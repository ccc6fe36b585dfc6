"""Where a link really comes from, once everything that only exists in the editor is looked through.

Between two nodes that run there may be bypassed nodes (the input of the same type passes through), muted
nodes (nothing comes), borders of subgraphs, and, whatever their mode, reroutes, Set and Get nodes, and
primitives, which are values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.subgraphs import Instance
from loraloom.workflow.ui_document import (
    BYPASS,
    INPUT_NODE,
    NEVER,
    OUTPUT_NODE,
    Scope,
    Slot,
    UiLink,
    UiNode,
)
from loraloom.workflow.use_everywhere import EVERYWHERE

REROUTES = frozenset({"Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss"})
NOTES = frozenset({"Note", "MarkdownNote", "Note Plus (mtb)", "Label (rgthree)", "Bookmark (rgthree)"})
SWITCHES = frozenset(
    f"{name} (rgthree)"
    for name in (
        "Fast Muter", "Fast Bypasser", "Fast Groups Muter", "Fast Groups Bypasser", "Fast Actions Button",
        "Mute / Bypass Relay", "Mute / Bypass Repeater", "Node Collector", "Random Unmuter",
    )
)  # fmt: skip
"""Nodes with which an editor mutes others; they do nothing themselves."""

PRIMITIVE, SEED_EVERYWHERE = "PrimitiveNode", "Seed Everywhere"
VALUES = frozenset({PRIMITIVE, SEED_EVERYWHERE})
GETTERS: Mapping[str, str] = {"GetNode": "SetNode", "easy getNode": "easy setNode"}
"""Nodes that read a name → those that write it."""

SETTERS = frozenset(GETTERS.values())
VIRTUAL = REROUTES | NOTES | SWITCHES | EVERYWHERE | VALUES | SETTERS | GETTERS.keys()
"""Classes that only the editor knows: they never reach a server."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A node that runs, and which of its outputs."""

    node: str
    slot: int


@dataclass(frozen=True, slots=True)
class Literal:
    """A value: of a primitive, or of a widget that a subgraph's host shows.

    final: whether its text is sent as it stands. The editor fills in `{a|b}` and dates where a widget is
    the node's own, and leaves the texts of a subgraph's host alone.
    """

    value: JSON
    final: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """A place on the way back: an input or an output slot of a node, and the type that is wanted."""

    instance: Instance
    node: UiNode
    slot: int
    output: bool
    type: str | None


class Routes:
    """Follows links back to their origin; answers are kept, so that long chains are walked once."""

    def __init__(self, schemas: Mapping[str, NodeSchema]) -> None:
        self._schemas = schemas
        self._slots: dict[int, tuple[Slot, ...]] = {}
        self._found: dict[tuple[int, int, int, bool, str | None], Origin | Literal | None] = {}
        self._setters: dict[int, dict[tuple[str, str], UiNode]] = {}

    def inputs(self, node: UiNode) -> tuple[Slot, ...]:
        """The sockets of a node as its class orders them: links first, then widgets, then the node's own."""
        slots = self._slots.get(id(node))
        if slots is None:
            slots = self._slots[id(node)] = _ordered(node, self._schemas.get(node.type))
        return slots

    def origin(self, instance: Instance, node: UiNode, slot: int) -> Origin | Literal | None:
        """What input `slot` of a node receives; None if nothing arrives."""
        step = _Step(instance, node, slot, False, None)
        walked: dict[tuple[int, int, int, bool, str | None], None] = {}
        result: Origin | Literal | None = None
        while True:
            key = (id(step.instance), id(step.node), step.slot, step.output, step.type)
            if key in self._found:
                result = self._found[key]
                break
            if key in walked:
                raise WorkflowError(
                    f"node {instance.full_id(node)} ({node.type}): the link of its input "
                    f"“{self.inputs(node)[slot].name}” runs in a circle through reroutes, bypassed nodes or "
                    "subgraph borders; break the circle in the editor"
                )
            walked[key] = None
            following = self._follow(step)
            if not isinstance(following, _Step):
                result = following
                break
            step = following
        for key in walked:
            self._found[key] = result
        return result

    def _follow(self, step: _Step) -> _Step | Origin | Literal | None:
        return self._leave_output(step) if step.output else self._leave_input(step)

    def _leave_input(self, step: _Step) -> _Step | Literal | None:
        slots = self.inputs(step.node)
        if step.slot >= len(slots):
            return None
        slot = slots[step.slot]
        link = find_link(step.instance.scope, step.node, slot)
        if link is None:
            return None
        return self._arrive(step.instance, link, step.type or slot.type)

    def _arrive(self, instance: Instance, link: UiLink, kind: str) -> _Step | Literal | None:
        """The far end of a link: an output of a node, or the border of the subgraph."""
        if link.origin == INPUT_NODE and instance.host is not None:
            return self._cross_border(instance, link.origin_slot)
        node = instance.scope.nodes.get(link.origin)
        return None if node is None else _Step(instance, node, link.origin_slot, True, kind)

    def _cross_border(self, instance: Instance, index: int) -> _Step | Literal | None:
        if instance.host is None or instance.parent is None or index >= len(instance.scope.inputs):
            return None
        name = instance.scope.inputs[index].name
        for position, slot in enumerate(self.inputs(instance.host)):
            if slot.name == name and find_link(instance.parent.scope, instance.host, slot) is not None:
                return _Step(instance.parent, instance.host, position, False, None)
        return Literal(instance.promoted[index], final=True) if index in instance.promoted else None

    def _leave_output(self, step: _Step) -> _Step | Origin | Literal | None:
        instance, node = step.instance, step.node
        if node.type in VIRTUAL and node.id not in instance.children:  # whatever their mode
            return self._look_through(step)
        if node.mode == NEVER:
            return None
        if node.mode == BYPASS:
            index = self._bypass(node, step.slot, step.type or "*")
            return None if index is None else _Step(instance, node, index, False, None)
        child = instance.children.get(node.id)
        if child is not None:
            links = child.scope.arrivals.get((OUTPUT_NODE, step.slot), ())
            return self._arrive(child, links[-1], step.type or "*") if links else None
        return Origin(instance.full_id(node), step.slot)

    def _look_through(self, step: _Step) -> _Step | Literal | None:
        """What a node that only the editor knows hands on."""
        instance, node = step.instance, step.node
        if node.type in REROUTES:
            return _Step(instance, node, step.slot, False, step.type)
        if node.type in SETTERS:
            return _Step(instance, node, 0, False, step.type)
        if node.type in GETTERS:
            return self._setter(step)
        if node.type in VALUES:
            value = instance.overrides.get((node.id, "value"), node.values[0] if node.values else None)
            return Literal(value, final=False)
        return None

    def _bypass(self, node: UiNode, slot: int, kind: str) -> int | None:
        """The input whose value a bypassed node hands to its output `slot`."""
        inputs = self.inputs(node)
        if not inputs:
            return None
        if kind in ("*", ""):
            return slot if slot < len(inputs) else 0
        schema = self._schemas.get(node.type)
        made = node.outputs[slot].type if slot < len(node.outputs) else kind
        if schema is not None and slot < len(schema.outputs):
            made = schema.outputs[slot].type
        same = inputs[slot] if slot < len(inputs) else None
        if same is not None and compatible(same.type, made) and compatible(same.type, kind):
            return slot
        exact = next((i for i, s in enumerate(inputs) if s.type == kind), None)
        if exact is not None:
            return exact
        return next(
            (i for i, s in enumerate(inputs) if compatible(s.type, made) and compatible(s.type, kind)), None
        )

    def _setter(self, step: _Step) -> _Step | None:
        """The Set node of the name that a Get node reads, here or in a surrounding level."""
        name = (GETTERS[step.node.type], str(step.node.values[0] if step.node.values else None))
        instance: Instance | None = step.instance
        while instance is not None:
            setters = self._setters.get(id(instance.scope))
            if setters is None:
                nodes = instance.scope.nodes.values()
                setters = {(n.type, str(n.values[0])): n for n in nodes if n.type in SETTERS and n.values}
                self._setters[id(instance.scope)] = setters
            node = setters.get(name)
            if node is not None:
                return _Step(instance, node, 0, False, step.type)
            instance = instance.parent
        return None


def find_link(scope: Scope, node: UiNode, slot: Slot) -> UiLink | None:
    """The link that a socket names; if the file lost it, one that leads to the same socket."""
    if slot.link is None:
        return None
    link = scope.links.get(slot.link)
    if link is not None:
        return link
    position = next((i for i, s in enumerate(node.inputs) if s is slot or s.link == slot.link), -1)
    return next(iter(scope.arrivals.get((node.id, position), ())), None)


def compatible(a: str, b: str) -> bool:
    """Whether an editor lets two socket types be joined; a type may be several, joined by commas."""
    if a in ("", "*", "0") or b in ("", "*", "0"):
        return True
    left, right = a.lower().split(","), b.lower().split(",")
    return any(kind in right for kind in left)


def _ordered(node: UiNode, schema: NodeSchema | None) -> tuple[Slot, ...]:
    if schema is None or schema.newer:
        return node.inputs
    own = {slot.name: slot for slot in reversed(node.inputs)}
    entries = [i for i in schema.inputs if not i.is_widget] + [i for i in schema.inputs if i.is_widget]
    out = [
        Slot(i.name, i.type, own[i.name].link if i.name in own else None, i.name if i.is_widget else None)
        for i in entries
    ]
    known = {i.name for i in schema.inputs}
    return (*out, *(slot for slot in node.inputs if slot.name not in known))
