"""What a node may return besides plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraloom.workflow.graph import JSON, Graph


@dataclass(frozen=True, slots=True)
class Blocked:
    """In place of an output: nodes that need it do not run; with a message, they fail with it."""

    message: str | None = None


ExecutionBlocker = Blocked


@dataclass(frozen=True, slots=True)
class NodeResult:
    """Outputs with what the editor shows (`ui`), or with nodes that take this node's place (`expand`).

    outputs: one per output of the class; with `expand` they may be `Link`s to nodes of that graph.
    """

    outputs: tuple[object, ...] = ()
    ui: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    expand: Graph | None = None
