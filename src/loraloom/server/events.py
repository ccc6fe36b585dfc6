"""One stream of all that happens, as server-sent events, for pages and programs that watch the queue."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Job, Status
from loraloom.jobs.notices import Notice
from loraloom.workflow.json_text import write_json

KEPT = 4000
KEPT_BYTES = 16 << 20
PAUSE_SECONDS = 0.1
HEARTBEAT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Entry:
    """Something lasting. number: its place since the start of the server; text: the event as it is sent."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """The latest step of a job, and the latest picture of what it is making: most steps bring none along.

    at, preview_at: the places of both among all steps since the start of the server."""

    notice: Notice
    at: int
    preview: bytes
    preview_at: int


@dataclass(slots=True)
class EventLog:
    """The latest entries, numbered, at most so many and of so many letters, and the latest step of each job
    that runs. A stream reads from where it stands, so that one that reads slowly costs nothing.

    epoch: tells the numbers of this server from those of the one before it.
    """

    epoch: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    last: int = 0
    steps: dict[str, Step] = field(default_factory=lambda: dict[str, Step]())
    steps_at: int = 0
    queue_at: int = 0
    entries: deque[Entry] = field(default_factory=lambda: deque[Entry]())
    size: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, notice: Notice) -> None:
        """Take note of what the queue tells."""
        job = notice.job
        if notice.kind == "progress":
            self._step(notice)
        elif notice.kind in ("queue", "worker"):
            self.queue_at += 1
            if job is not None:
                self._add("job", brief(job))
        elif job is not None:
            if job.status is not Status.RUNNING:
                self.steps.pop(job.id, None)
            said = {k: v for k, v in notice.payload.items() if k not in ("kind", "job")}
            at = time.time() if notice.event is None else notice.event.at
            self._add(notice.kind, {"job": job.id, "status": str(job.status), "at": at, **said})
        self._wake()

    def _step(self, notice: Notice) -> None:
        if notice.job is None:
            return
        self.steps_at += 1
        former = self.steps.get(notice.job.id)
        preview, preview_at = notice.preview, self.steps_at
        if not preview and former is not None and former.notice.payload["node"] == notice.payload["node"]:
            preview, preview_at = former.preview, former.preview_at
        self.steps[notice.job.id] = Step(notice, self.steps_at, preview, preview_at)

    def tell(self, kind: str, data: Mapping[str, Any]) -> None:
        """Tell of something that is no job."""
        self._add(kind, data)
        self._wake()

    def _wake(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()

    def _add(self, kind: str, data: Mapping[str, Any]) -> None:
        self.last += 1
        self.entries.append(Entry(self.last, event(kind, data, f"{self.epoch}-{self.last}")))
        self.size += len(self.entries[-1].text)
        while len(self.entries) > KEPT or (self.size > KEPT_BYTES and len(self.entries) > 1):
            self.size -= len(self.entries.popleft().text)

    def position(self, event_id: str) -> int | None:
        """Where a reader stands whose last event had this id; None when that is not known any more."""
        epoch, _, number = event_id.partition("-")
        if epoch != self.epoch or not number.isascii() or not number.isdigit() or len(number) > 15:
            return None
        return int(number) if self.since(int(number)) is not None else None

    def since(self, position: int) -> list[Entry] | None:
        """The entries behind a position; None when some are forgotten."""
        count = self.last - position
        if count < 0 or count > len(self.entries):
            return None
        return [self.entries[i] for i in range(len(self.entries) - count, len(self.entries))]


def brief(job: Job) -> dict[str, Any]:
    """What lists show of a job."""
    return {
        "id": job.id,
        "status": str(job.status),
        "number": job.number,
        "priority": job.priority,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
    }


async def stream(
    log: EventLog, dispatcher: Dispatcher, last_id: str, *, previews: bool
) -> AsyncGenerator[str, None]:
    """What happens from now on, or from behind the event `last_id` on. `reset` says that something is missing
    before it."""
    position = log.position(last_id) if last_id else log.last
    if position is None:
        position = log.last
        yield event("reset", {}, f"{log.epoch}-{position}")
    queue_at, steps_at = -1, log.steps_at
    while True:
        news = log.news
        found = log.since(position)
        if found is None:
            position = log.last
            yield event("reset", {}, f"{log.epoch}-{position}")
        for entry in found or ():
            position = entry.number
            yield entry.text
        if log.queue_at != queue_at:
            queue_at = log.queue_at
            yield event("queue", await queue_state(dispatcher))
        seen, steps_at = steps_at, log.steps_at
        for step in [step for step in log.steps.values() if step.at > seen]:
            shown = step.preview if previews and step.preview_at > seen else b""
            yield event("progress", progress(step.notice, shown))
        await asyncio.sleep(PAUSE_SECONDS)
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await news.wait()
        except TimeoutError:
            yield ": still here\n\n"


async def queue_state(dispatcher: Dispatcher) -> dict[str, Any]:
    """How many jobs wait and run, whether the queue is paused, and what the worker says of itself."""
    pending, running = await dispatcher.read(lambda s: (s.count(Status.PENDING), s.count(Status.RUNNING)))
    worker = dict(dispatcher.worker_info)
    return {"pending": pending, "running": running, "paused": dispatcher.paused, "worker": worker}


def progress(notice: Notice, preview: bytes) -> dict[str, Any]:
    """A step of a node. preview: a JPEG of what it is making, empty for none."""
    said = notice.payload
    data: dict[str, Any] = {name: said[name] for name in ("node", "display", "value", "max")}
    if notice.job is not None:
        data["job"] = notice.job.id
    if preview:
        data["preview"] = base64.b64encode(preview).decode()
    return data


def event(kind: str, data: Mapping[str, Any], event_id: str = "") -> str:
    """An event as it goes over the wire."""
    number = f"id: {event_id}\n" if event_id else ""
    return f"{number}event: {kind}\ndata: {write_json(data)}\n\n"
