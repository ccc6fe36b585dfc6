"""A job and what may happen to it. Pure: every change returns a new job; `store` makes it last.

pending ─claim→ running ─succeed→ completed
   ↑               ├─fail→ failed
   │               ├─stop→ cancelled
   ├─worker_died───┤         (the second death: quarantined)
   ├─out_of_reach──┤         (its machine is not heard of any more; the fifth time: quarantined)
   ├─interrupted───┘         (the server ended: the job runs again)
   └─retry── failed, cancelled, quarantined
pending ─stop→ cancelled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from loraloom.engine.failures import FailurePolicy
from loraloom.errors import LoraloomError
from loraloom.workflow.graph import JSON

MAX_WORKER_DEATHS = 2
MAX_LOSSES = 5


class Status(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"

    @property
    def final(self) -> bool:
        return self not in (Status.PENDING, Status.RUNNING)


class WrongStatus(LoraloomError):
    """Something was asked of a job that its status does not allow."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for.

    prompt: the graph as API JSON. extra_data: what came with it; `extra_pnginfo.workflow` is the editor's
    JSON. targets: the output nodes to run, None for all. policy: what becomes of the other nodes when one
    fails.
    """

    prompt: Mapping[str, JSON]
    extra_data: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    targets: tuple[str, ...] | None = None
    client_id: str | None = None
    webhook: str | None = None
    policy: FailurePolicy = "fail_fast"

    def to_json(self) -> dict[str, JSON]:
        targets: list[JSON] | None = None if self.targets is None else [*self.targets]
        return {
            "prompt": dict(self.prompt),
            "extra_data": dict(self.extra_data),
            "targets": targets,
            "client_id": self.client_id,
            "webhook": self.webhook,
            "node_failure_policy": self.policy,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        targets = data["targets"]
        return cls(
            prompt=data["prompt"],
            extra_data=data["extra_data"],
            targets=None if targets is None else tuple(targets),
            client_id=data["client_id"],
            webhook=data["webhook"],
            policy=data.get("node_failure_policy", "fail_fast"),
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Times are seconds since 1970.

    number: its place in the queue among jobs of its priority, lowest first (ComfyUI's "number").
    claims: how often a worker has begun it, which names its lease: what comes of an older one is refused.
    place: the worker that has it, or had it last. deaths: how often it took its worker with it; losses: how
    often its worker was not heard of any more.
    result: outputs, receipts, warnings and timings. error: type, message, and what else is known.
    """

    id: str
    number: float
    request: Request
    priority: int = 0
    status: Status = Status.PENDING
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    claims: int = 0
    deaths: int = 0
    result: Mapping[str, JSON] | None = None
    error: Mapping[str, JSON] | None = None
    place: str | None = None
    losses: int = 0

    def claim(self, now: float, place: str | None = None) -> Job:
        """A worker takes the job."""
        self._expect("start", Status.PENDING)
        return replace(self, status=Status.RUNNING, started=now, claims=self.claims + 1, place=place)

    def succeed(self, now: float, result: Mapping[str, JSON]) -> Job:
        self._expect("finish", Status.RUNNING)
        return replace(self, status=Status.COMPLETED, finished=now, result=result)

    def fail(self, now: float, error: Mapping[str, JSON], result: Mapping[str, JSON] | None = None) -> Job:
        self._expect("fail", Status.RUNNING)
        return replace(self, status=Status.FAILED, finished=now, error=error, result=result)

    def stop(self, now: float, result: Mapping[str, JSON] | None = None) -> Job:
        """The user cancels the job; a finished job keeps its result."""
        self._expect("cancel", Status.PENDING, Status.RUNNING)
        return replace(self, status=Status.CANCELLED, finished=now, result=result)

    def worker_died(self, now: float, reason: str) -> Job:
        """The worker ended while it ran the job: once it runs again, the second time it is put aside."""
        self._expect("lose its worker", Status.RUNNING)
        deaths = self.deaths + 1
        if deaths < MAX_WORKER_DEATHS:
            return replace(self, status=Status.PENDING, started=None, deaths=deaths)
        return replace(self._put_aside(now, f"the worker ended {deaths} times", reason), deaths=deaths)

    def out_of_reach(self, now: float, reason: str) -> Job:
        """The worker's machine is not heard of any more, which says little of the job: it runs again, but not
        for ever, as it may be what takes the machines down."""
        self._expect("lose its worker", Status.RUNNING)
        losses = self.losses + 1
        if losses < MAX_LOSSES:
            return replace(self, status=Status.PENDING, started=None, losses=losses)
        return replace(self._put_aside(now, f"workers were lost {losses} times", reason), losses=losses)

    def _put_aside(self, now: float, what: str, reason: str) -> Job:
        error: dict[str, JSON] = {
            "type": "quarantined",
            "message": f"{what} while it ran this job, the last time because {reason}; it will not be tried "
            "again unless you retry it",
        }
        return replace(self, status=Status.QUARANTINED, finished=now, error=error)

    def interrupted(self) -> Job:
        """The server ended while the job ran, through no fault of the job: it runs again."""
        self._expect("be interrupted", Status.RUNNING)
        return replace(self, status=Status.PENDING, started=None)

    def retry(self, number: float) -> Job:
        """Queue a job that came to nothing once more, under its old id."""
        self._expect("be retried", Status.FAILED, Status.CANCELLED, Status.QUARANTINED)
        return replace(
            self,
            status=Status.PENDING,
            number=number,
            started=None,
            finished=None,
            deaths=0,
            losses=0,
            result=None,
            error=None,
        )

    def move(self, number: float, priority: int) -> Job:
        """Give a waiting job another place."""
        self._expect("be moved", Status.PENDING)
        return replace(self, number=number, priority=priority)

    def _expect(self, what: str, *statuses: Status) -> None:
        if self.status not in statuses:
            wanted = " or ".join(statuses)
            raise WrongStatus(f"job {self.id} is {self.status} and cannot {what}; that takes {wanted}")
