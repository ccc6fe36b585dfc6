"""What becomes of a run when a node fails: it ends, or nodes that do not need that one go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias, get_args

from loraloom.engine.events import NodeFailed, Partial
from loraloom.engine.plan import CycleError
from loraloom.errors import OutOfMemory
from loraloom.workflow.graph import GraphNode

FailurePolicy: TypeAlias = Literal["fail_fast", "continue_independent"]
"""ComfyUI's words. fail_fast: the run ends with the first node that fails. continue_independent: nodes that
need one that has failed do not run, all others do."""

POLICIES: tuple[FailurePolicy, ...] = get_args(FailurePolicy)


class Failures:
    """Of one run. nodes, parents: those of the run, with expansions; display: the node an editor shows."""

    def __init__(
        self,
        policy: FailurePolicy,
        nodes: Mapping[str, GraphNode],
        parents: Mapping[str, str],
        display: Callable[[str], str],
    ) -> None:
        self._goes_on = policy == "continue_independent"
        self._nodes, self._parents, self._display = nodes, parents, display
        self._events: list[NodeFailed] = []
        self._incomplete: set[str] = set()

    def ends_run(self, error: BaseException) -> bool:
        """Whether a failure ends the run: a lack of memory and a cycle are no fault of one node."""
        lack = isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError"
        return not self._goes_on or lack or isinstance(error, CycleError)

    def add(self, event: NodeFailed) -> None:
        """A node has failed and the run goes on."""
        self._events.append(event)
        current = event.node_id
        while current in self._parents:
            current = self._parents[current]
            self._incomplete.add(current)

    @property
    def first(self) -> NodeFailed | None:
        return self._events[0] if self._events else None

    def incomplete(self, node_id: str) -> bool:
        """Whether a node's result lacks something, as a node in its place has failed, or in that of one that
        it takes an input from: the next run shall not take it for the whole."""
        if not self._incomplete:
            return False
        links = self._nodes[node_id].links().values()
        if node_id not in self._incomplete and not any(link.node in self._incomplete for link in links):
            return False
        self._incomplete.add(node_id)
        return True

    def partial(
        self, blocked: Iterable[str], outputs: Iterable[str], wanted: Iterable[str]
    ) -> Partial | None:
        """How far the run came; None when nothing has failed. outputs: the output nodes that have run,
        wanted: those of the graph that were to."""
        if not self._events:
            return None
        held = self._shown(blocked)
        return Partial(
            failed=self._shown(event.node_id for event in self._events),
            blocked=held,
            blocked_outputs=tuple(node for node in self._shown(wanted) if node in held),
            outputs=self._shown(outputs),
        )

    def _shown(self, node_ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(self._display, node_ids)))
