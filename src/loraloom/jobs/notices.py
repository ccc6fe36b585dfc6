"""What the queue tells those who listen, and within which times it expects things to happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.jobs.job import Job
from loraloom.jobs.store import JobEvent


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. start: from the start of a worker to its first word. stall: without any progress of a job.
    silence: without any sign of life of the worker. cancel: from the wish to cancel to the end of the worker,
    if it does not stop by itself."""

    start: float = 600.0
    stall: float = 1800.0
    silence: float = 120.0
    cancel: float = 20.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that has happened, for whoever listens.

    kind: "queue" (what waits or runs has changed), "worker", or the kind of a job's event.
    event: the lasting event behind it. preview: JPEG bytes.
    """

    kind: str
    job: Job | None = None
    payload: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    event: JobEvent | None = None
    preview: bytes = b""


Listener = Callable[[Notice], None]
