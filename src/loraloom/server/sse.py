"""A job's events as server-sent events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.notices import Notice
from loraloom.jobs.orders import ENDS
from loraloom.jobs.store import JobEvent
from loraloom.server.events import event, progress

HEARTBEAT_SECONDS = 15.0
_FINAL = frozenset({*ENDS, "quarantined"})
MAX_WAITING = 2_000


@dataclass(slots=True)
class Line:
    """What a reader has not taken yet: all that lasts, and of the steps between only the last, with the
    latest picture of them."""

    notices: deque[Notice] = field(default_factory=lambda: deque[Notice]())
    step: Notice | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    overflown: bool = False

    def put(self, notice: Notice) -> None:
        if notice.kind == "progress":
            kept = b"" if self.step is None else self.step.preview
            self.step = notice if notice.preview or not kept else replace(notice, preview=kept)
        elif len(self.notices) >= MAX_WAITING:
            self.overflown = True
        else:
            if self.step is not None:
                self.notices.append(replace(self.step, preview=b""))
                self.step = None
            self.notices.append(notice)
        self.news.set()

    async def take(self) -> Notice | None:
        """The next; None when too much waits."""
        while not self.overflown:
            if self.notices:
                return self.notices.popleft()
            if self.step is not None:
                notice, self.step = self.step, None
                return notice
            self.news.clear()
            await self.news.wait()
        return None


async def follow(dispatcher: Dispatcher, job_id: str, after: int) -> AsyncGenerator[str, None]:
    """What has happened since event `after`, then what happens, to the end of the job.

    A reader that falls too far behind is let go; it can come back with the last id that it has seen.
    """
    line = Line()

    def hear(notice: Notice) -> None:
        if notice.job is not None and notice.job.id == job_id:
            line.put(notice)

    stop = dispatcher.listen(hear)
    try:
        stored = await dispatcher.read(lambda s: s.events(job_id, after))
        live = dispatcher.running.get(job_id)
        current = [] if live is None else [*live.events]
        for found in (*stored, *current):
            if found.sequence > after:
                after = found.sequence
                yield _event(found)
        job = await dispatcher.read(lambda s: s.find(job_id))
        if job is None or job.status.final:
            return
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    notice = await line.take()
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if notice is None:
                return
            if notice.event is not None and notice.event.sequence > after:
                after = notice.event.sequence
                yield _event(notice.event)
            elif notice.kind == "progress":
                yield event("progress", progress(notice, notice.preview))
            elif notice.kind == "cancelled" and notice.event is None:
                yield event("cancelled", {})
            if notice.kind in _FINAL:
                return
    finally:
        stop()


def _event(found: JobEvent) -> str:
    return event(found.kind, {**found.payload, "at": found.at}, str(found.sequence))
