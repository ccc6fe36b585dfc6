"""A job's events as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from loraloom.jobs.dispatcher import Dispatcher, Notice
from loraloom.jobs.store import JobEvent
from loraloom.workflow.graph import JSON

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
        stored = await dispatcher.call(lambda s: s.events(job_id, after))
        live = dispatcher.live
        current = [*live.events] if live is not None and live.job.id == job_id else []
        for event in (*stored, *current):
            if event.sequence > after:
                after = event.sequence
                yield _event(event)
        job = await dispatcher.call(lambda s: s.find(job_id))
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
                yield _progress(notice)
            elif notice.kind == "cancelled" and notice.event is None:
                yield _text("cancelled", {})
            if notice.kind in _FINAL:
                return
    finally:
        stop()


def _event(event: JobEvent) -> str:
    return f"id: {event.sequence}\n" + _text(event.kind, {**event.payload, "at": event.at})


def _progress(notice: Notice) -> str:
    said = notice.payload
    data: dict[str, Any] = {name: said[name] for name in ("node", "display", "value", "max")}
    if notice.preview:
        data["preview"] = base64.b64encode(notice.preview).decode()
    return _text("progress", data)


def _text(kind: str, data: Mapping[str, JSON]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
