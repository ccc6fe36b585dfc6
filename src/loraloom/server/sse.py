"""A job's events as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.notices import Notice
from loraloom.jobs.store import JobEvent
from loraloom.server.events import event, progress

HEARTBEAT_SECONDS = 15.0
_FINAL = frozenset({"completed", "failed", "cancelled", "quarantined"})
_MAX_WAITING = 2_000


async def follow(dispatcher: Dispatcher, job_id: str, after: int) -> AsyncGenerator[str, None]:
    """What has happened since event `after`, then what happens, to the end of the job.

    A reader that falls too far behind is let go; it can come back with the last id that it has seen.
    """
    waiting: asyncio.Queue[Notice] = asyncio.Queue(_MAX_WAITING)
    overflow = asyncio.Event()

    def hear(notice: Notice) -> None:
        if notice.job is None or notice.job.id != job_id:
            return
        try:
            waiting.put_nowait(notice)
        except asyncio.QueueFull:
            overflow.set()

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
        while not overflow.is_set():
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    notice = await waiting.get()
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if notice.event is not None and notice.event.sequence > after:
                after = notice.event.sequence
                yield _event(notice.event)
            elif notice.kind == "progress":
                yield event("progress", progress(notice, previews=True))
            elif notice.kind == "cancelled" and notice.event is None:
                yield event("cancelled", {})
            if notice.kind in _FINAL:
                return
    finally:
        stop()


def _event(found: JobEvent) -> str:
    return event(found.kind, {**found.payload, "at": found.at}, str(found.sequence))
