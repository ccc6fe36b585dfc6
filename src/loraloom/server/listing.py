"""The answer of ComfyUI's `GET /queue`, which editors ask for after every change, however long it is."""

from __future__ import annotations

import asyncio

from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.store import Store
from loraloom.server.release import RELEASE

# An entry as `wire.queue_item` makes it: number, id, prompt, extra_data, output nodes.
_NUMBER = "CASE WHEN number = CAST(number AS INTEGER) THEN CAST(number AS INTEGER) ELSE number END"
_EXTRA = "json_set(json_extract(request, '$.extra_data'), '$.create_time', CAST(created * 1000 AS INTEGER))"
_WHOLE_EXTRA = (
    f"CASE WHEN json_extract(request, '$.client_id') IS NULL THEN {_EXTRA} "
    f"ELSE json_set({_EXTRA}, '$.client_id', json_extract(request, '$.client_id')) END"
)
_ENTRY = (
    f"'[' || {_NUMBER} || ',' || json_quote(id) || ',' || json_extract(request, '$.prompt') || ',' || "
    f"{_WHOLE_EXTRA} || ',' || coalesce(json_extract(request, '$.targets'), '[]') || ']'"
)
_KEPT_BYTES = 8 << 20
_READABLE = "json_valid(request) AND json_type(request, '$.extra_data') = 'object'"


class QueueListing:
    """Makes the answer once for all that ask while it is being made, and not at all when nothing changed."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._made: tuple[int, bytes] | None = None
        self._current: asyncio.Task[bytes] | None = None
        self._next: asyncio.Task[bytes] | None = None

    async def json(self) -> bytes:
        """The whole answer. It shows whatever was committed before it was asked for."""
        if self._next is None:
            self._next = asyncio.create_task(self._make(self._current))
        return await asyncio.shield(self._next)

    async def _make(self, former: asyncio.Task[bytes] | None) -> bytes:
        if former is not None:
            await asyncio.wait([former])
        # From here on a newcomer may have seen more than what is read now.
        self._current, self._next = self._next, None
        changes = self._dispatcher.changes
        if self._made is not None and self._made[0] == changes:
            return self._made[1]
        made = await self._dispatcher.read(_both)
        self._made = (changes, made) if len(made) <= _KEPT_BYTES else None
        RELEASE.after(len(made))
        return made


def _both(store: Store) -> bytes:
    running = store.joined(_ENTRY, f"status = 'running' AND {_READABLE}")
    pending = store.joined(_ENTRY, f"status = 'pending' AND {_READABLE} ORDER BY priority DESC, number")
    return f'{{"queue_running":[{running}],"queue_pending":[{pending}]}}'.encode()
