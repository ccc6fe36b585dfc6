"""The run as one node sees it."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from loraloom.engine.cache import Cache
from loraloom.engine.events import ComingNote, Event, NodeNote, NodeProgress, NodeWarning, Said
from loraloom.engine.plan import order
from loraloom.errors import Cancelled
from loraloom.workflow.graph import JSON, Graph, GraphNode

Note: TypeAlias = NodeNote | ComingNote
Computed = TypeVar("Computed")

_CANCEL_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all nodes of a run share.

    emit: takes events, from any thread. cancelled: whether the user has stopped the run.
    nodes: the nodes as they are now, those of expansions included; parents: which node each of those
    replaces. coming: notes that have not been emitted, because they or one before them are not computed.
    """

    graph: Graph
    prompt: dict[str, JSON]
    services: object
    extra_pnginfo: Mapping[str, JSON]
    cache: Cache
    emit: Callable[[Event], None]
    cancelled: Callable[[], bool]
    notes: dict[str, list[Note]] = field(default_factory=lambda: dict[str, list[Note]]())
    coming: deque[Note] = field(default_factory=lambda: deque[Note]())
    nodes: dict[str, GraphNode] = field(default_factory=lambda: dict[str, GraphNode]())
    parents: dict[str, str] = field(default_factory=lambda: dict[str, str]())

    def __post_init__(self) -> None:
        self.nodes.update(self.graph.nodes)

    def say(self, event: Said, node_id: str) -> None:
        """Emit a note or warning; notes are kept under the node of the graph (`node_id`) for `noted`."""
        if isinstance(event, NodeWarning):
            self.emit(event)
            return
        self.notes.setdefault(node_id, []).append(event)
        self.coming.append(event)
        self.tell_notes(wait=False)

    def tell_notes(self, *, wait: bool) -> None:
        """Emit the notes that have come, in their order; wait: all of them. Raises Cancelled."""
        while self.coming:
            first = self.coming[0]
            while isinstance(first, ComingNote) and not first.computed.done():
                if not wait:
                    return
                self.check_cancelled()
                futures.wait([first.computed], _CANCEL_POLL_SECONDS)
            self.emit(first.note() if isinstance(first, ComingNote) else first)
            self.coming.popleft()

    def noted(self, kind: str, node_id: str) -> list[JSON]:
        """The notes of a kind by a node of the graph and all that it depends on, in the order of the run.
        Waits for those that are not computed yet."""
        self.tell_notes(wait=True)
        needed = set(order(self.graph.nodes, (node_id,)))
        found = [n for i, notes in self.notes.items() if i in needed for n in notes if n.kind == kind]
        return [(n.note() if isinstance(n, ComingNote) else n).payload for n in found]

    def check_cancelled(self) -> None:
        if self.cancelled():
            raise Cancelled("the run was stopped")


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What a node receives as `run`; see `NodeRun`. `said` gathers its notes and warnings."""

    around: Surroundings
    node: GraphNode
    display_id: str
    said: list[Said] = field(default_factory=lambda: list[Said]())

    @property
    def node_id(self) -> str:
        return self.node.id

    @property
    def nodes(self) -> Mapping[str, GraphNode]:
        return self.around.nodes

    @property
    def parents(self) -> Mapping[str, str]:
        return self.around.parents

    @property
    def prompt(self) -> dict[str, JSON]:
        return self.around.prompt

    @property
    def extra_pnginfo(self) -> Mapping[str, JSON]:
        return self.around.extra_pnginfo

    @property
    def services(self) -> object:
        return self.around.services

    def progress(self, value: float, total: float, preview: object | None = None) -> None:
        self.around.check_cancelled()
        self.around.tell_notes(wait=False)
        self.around.emit(NodeProgress(self.node_id, self.display_id, value, total, preview))

    def check_cancelled(self) -> None:
        self.around.check_cancelled()

    def warn(self, message: str) -> None:
        self._say(NodeWarning(self.node_id, message))

    def note(self, kind: str, payload: JSON) -> None:
        self._say(NodeNote(self.node_id, kind, payload))

    def note_later(self, kind: str, computed: Future[Computed], payload: Callable[[Computed], JSON]) -> None:
        self._say(ComingNote(self.node_id, kind, computed, payload))

    def notes(self, kind: str) -> list[JSON]:
        return self.around.noted(kind, self.display_id)

    def cached(self, key: str, make: Callable[[], object]) -> object:
        kept = self.around.cache.objects(self.node_id, self.node.class_type)
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def _say(self, event: Said) -> None:
        self.said.append(event)
        self.around.say(event, self.display_id)


def fitting(function: Callable[..., object], values: Mapping[str, object], run: object) -> dict[str, object]:
    """Those values that a function names (all, if it takes any), with `run` when it asks for it."""
    parameters = inspect.signature(function).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    found = {name: value for name, value in values.items() if any_name or name in parameters}
    return {**found, "run": run} if "run" in parameters else found
