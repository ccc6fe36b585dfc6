"""What a run reports, in the order in which it happens.

    RunStarted NodesCached? (NodeStarted (NodeProgress | NodeNote | NodeWarning)* NodeFinished? …)*
    then exactly one of RunFinished, RunFailed (after NodeFailed, where a node is to blame) or RunCancelled

A run that goes on after failures says each NodeFailed when it happens.

A note that is still being computed when its node has finished comes later, notes in the order of their nodes.

Nodes that a node was expanded into have their own id; `display_id` is the node that an editor shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from loraloom.workflow.graph import JSON


@dataclass(frozen=True, slots=True)
class RunStarted:
    """nodes: every node that the targets need, in an order in which they could run."""

    nodes: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodesCached:
    """These nodes do not run: their results are kept from earlier."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeStarted:
    node_id: str
    display_id: str
    class_type: str
    title: str | None = None


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """preview: whatever the node shows of its work; picture encoding belongs to the reader."""

    node_id: str
    display_id: str
    value: float
    total: float
    preview: object | None = None


@dataclass(frozen=True, slots=True)
class NodeNote:
    """A fact for the run's result, such as a LoRA receipt."""

    node_id: str
    kind: str
    payload: JSON


@dataclass(frozen=True, slots=True, eq=False)
class ComingNote:
    """A note to be: `payload` of what another thread is computing. No event itself."""

    node_id: str
    kind: str
    computed: Future[Any]
    payload: Callable[[Any], JSON]

    def note(self) -> NodeNote:
        """The note, waited for."""
        return NodeNote(self.node_id, self.kind, self.payload(self.computed.result()))


@dataclass(frozen=True, slots=True)
class NodeWarning:
    node_id: str
    message: str


@dataclass(frozen=True, slots=True)
class NodeBlocked:
    """A node did not run because an input is blocked; with a message, an editor shows it as an error."""

    node_id: str
    display_id: str
    class_type: str
    message: str | None


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """outputs: how many values each output holds. ui: what an editor shows for the node; may be empty.

    parent_id: the node that was expanded into this one; cached: the result is kept from earlier.
    """

    node_id: str
    display_id: str
    class_type: str
    ui: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    outputs: tuple[int, ...] = ()
    cached: bool = False
    parent_id: str | None = None


@dataclass(frozen=True, slots=True)
class NodeFailed:
    """inputs: what the node received, each in a few words. executed: the nodes that had finished by then.
    blocked: nodes that do not run for it, where the run goes on."""

    node_id: str
    display_id: str
    class_type: str
    title: str | None
    exception: BaseException
    inputs: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    executed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """Node id, title, class and cause in one line."""
        title = f" “{self.title}”" if self.title and self.title != self.class_type else ""
        cause = str(self.exception) or type(self.exception).__name__
        return f"node {self.node_id}{title} ({self.class_type}): {cause}"


@dataclass(frozen=True, slots=True)
class Partial:
    """How far a run came that went on after failures, in nodes that an editor shows.

    failed: nodes that failed; blocked: those that did not run for it, and blocked_outputs the output nodes
    among them; outputs: the output nodes that ran.
    """

    failed: tuple[str, ...]
    blocked: tuple[str, ...]
    blocked_outputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunFinished:
    """partial: what is lacking, where some nodes failed and at least one output node did not need them."""

    executed: tuple[str, ...] = ()
    partial: Partial | None = None


@dataclass(frozen=True, slots=True)
class RunFailed:
    """error: what went wrong; `failure` says in which node. partial: where the run had gone on after it."""

    error: BaseException
    failure: NodeFailed | None = None
    partial: Partial | None = None


@dataclass(frozen=True, slots=True)
class RunCancelled:
    """node_id: the node that was running, if one was."""

    node_id: str | None = None
    executed: tuple[str, ...] = ()


Event: TypeAlias = (
    RunStarted
    | NodesCached
    | NodeStarted
    | NodeProgress
    | NodeNote
    | NodeWarning
    | NodeBlocked
    | NodeFinished
    | NodeFailed
    | RunFinished
    | RunFailed
    | RunCancelled
)


Said: TypeAlias = NodeNote | ComingNote | NodeWarning
"""What a node says that holds for every run that uses its result."""


def receipt_in(kind: str, payload: JSON) -> dict[str, JSON] | None:
    """The LoRA receipt in a note, with "node" and "name"; None where the note is another."""
    return payload if kind == "lora" and isinstance(payload, dict) else None
