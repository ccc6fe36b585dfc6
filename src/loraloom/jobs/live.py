"""The job that is running now: what it has said so far, and the result that this adds up to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from loraloom.engine.events import receipt_in
from loraloom.jobs.job import Job
from loraloom.jobs.store import JobEvent, first_sequence
from loraloom.workflow.graph import JSON

# Kinds of messages that are kept with the job; progress is not.
LASTING = frozenset({"cached", "node_finished", "note", "warning", "blocked", "node_failed"})


def _now_ms() -> int:
    return int(time.time() * 1000)


def _left_out(nodes: list[str]) -> str:
    return f"so that {', '.join(nodes)} did not run" if nodes else "no other node needed it"


@dataclass(slots=True)
class LiveJob:
    """events: lasting events so far, with the sequence numbers that readers see.

    states: what every node is doing, in the form of ComfyUI's `progress_state`. errors: of nodes that failed
    while others went on; partial: how far these came. previews: how pictures of
    unfinished work are made, "" for none.
    """

    job: Job
    previews: str = ""
    events: list[JobEvent] = field(default_factory=lambda: list[JobEvent]())
    states: dict[str, dict[str, JSON]] = field(default_factory=lambda: dict[str, dict[str, JSON]]())
    outputs: dict[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    meta: dict[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    receipts: list[JSON] = field(default_factory=lambda: list[JSON]())
    warnings: list[JSON] = field(default_factory=lambda: list[JSON]())
    cached: list[JSON] = field(default_factory=lambda: list[JSON]())
    timings: dict[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    begun: dict[str, float] = field(default_factory=lambda: dict[str, float]())
    errors: list[JSON] = field(default_factory=lambda: list[JSON]())
    partial: JSON = None
    started_ms: int = field(default_factory=_now_ms)
    cancelling: bool = False

    def see(self, message: Mapping[str, Any]) -> JobEvent | None:
        """Take note of a message of the worker; the event it becomes, if it is one that lasts."""
        kind = message["kind"]
        match kind:
            case "cached":
                self.cached += message["nodes"]
                for node in message["nodes"]:
                    self._state(node, node, 1, 1, "finished")
            case "node_started":
                self.begun[message["node"]] = time.monotonic()
                self._state(message["node"], message["display"], 0, 1, "running")
            case "progress":
                self._state(message["node"], message["display"], message["value"], message["max"], "running")
            case "node_finished":
                self._finished(message)
            case "node_failed":
                self._failed(message)
            case "note":
                receipt = receipt_in(message["note"], message["payload"])
                if receipt is not None:
                    self.receipts.append(receipt)
            case "warning":
                self.warnings.append(f"node {message['node']}: {message['message']}")
            case "completed" | "failed":
                self.partial = message.get("partial")
            case _:
                pass
        return self.add(kind, message) if kind in LASTING else None

    def add(self, kind: str, payload: Mapping[str, Any]) -> JobEvent:
        """A lasting event that has happened, with its number."""
        event = self.event(kind, payload)
        self.events.append(event)
        return event

    def event(self, kind: str, payload: Mapping[str, Any]) -> JobEvent:
        """The event that would come next. A job's last one is not added: readers of `events` would see it
        before it is committed."""
        said = {k: cast("JSON", v) for k, v in payload.items() if k not in ("kind", "job")}
        return JobEvent(self.job.id, first_sequence(self.job) + len(self.events), time.time(), kind, said)

    def result(self) -> dict[str, JSON]:
        """What is kept of the run, whatever its end."""
        found: dict[str, JSON] = {
            "outputs": self.outputs,
            "meta": self.meta,
            "receipts": self.receipts,
            "warnings": self.warnings,
            "cached": self.cached,
            "timings": self.timings,
            "started_ms": self.started_ms,
            "finished_ms": _now_ms(),
        }
        return {**found, "partial": self.partial, "errors": self.errors} if self.partial else found

    def _failed(self, message: Mapping[str, Any]) -> None:
        self._state(message["node"], message["display"], 0, 1, "error")
        if self.job.request.policy == "fail_fast":
            return  # it is the job's own error
        self.errors.append({k: v for k, v in message.items() if k not in ("kind", "job")})
        self.warnings.append(f"{message['message']}; {_left_out(message['blocked'])}")
        for node in message["blocked"]:
            self._state(node, node, 0, 1, "blocked")

    def _finished(self, message: Mapping[str, Any]) -> None:
        node, display = message["node"], message["display"]
        self._state(node, display, 1, 1, "finished")
        if node in self.begun:
            self.timings[node] = round(time.monotonic() - self.begun[node], 4)
        if message["ui"]:
            self.outputs[node] = message["ui"]
            self.meta[node] = {
                "node_id": node,
                "display_node": display,
                "parent_node": message["parent"],
                "real_node_id": node,
            }

    def _state(self, node: str, display: str, value: float, maximum: float, state: str) -> None:
        known = self.states.get(node)
        if state == "finished" and known is not None:
            value = maximum = max(cast("float", known["max"]), 1)
        self.states[node] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node,
            "prompt_id": self.job.id,
            "display_node_id": display,
            "parent_node_id": None if node == display else display,
            "real_node_id": node,
        }
