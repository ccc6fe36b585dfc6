"""The answer of ComfyUI's `GET /queue`, which editors ask for after every change, however long it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence

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
_AT_ONCE = 64 << 20
_PART = 4 << 20
_READABLE = "json_valid(request) AND json_type(request, '$.extra_data') = 'object'"
_RUNNING = f"status = 'running' AND {_READABLE}"
_PENDING = f"status = 'pending' AND {_READABLE}"
_BY_AGE, _IN_TURN = "ORDER BY rowid", "ORDER BY priority DESC, number"


class QueueListing:
    """Makes the answer once for all that ask while it is being made, and not at all when nothing changed. One
    that is too long to be held for them is made for each, part by part."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._made: tuple[int, bytes] | None = None
        self._current: asyncio.Task[bytes | None] | None = None
        self._next: asyncio.Task[bytes | None] | None = None

    async def json(self) -> bytes | None:
        """The whole answer, None when it is too long. It shows whatever was committed before it was asked
        for."""
        if self._next is None:
            self._next = asyncio.create_task(self._make(self._current))
        return await asyncio.shield(self._next)

    async def parts(self) -> AsyncGenerator[bytes]:
        """The answer, part by part; a job that begins meanwhile may be left out."""
        yield b'{"queue_running":['
        async for part in self._listed(_RUNNING, _BY_AGE):
            yield part
        yield b'],"queue_pending":['
        async for part in self._listed(_PENDING, _IN_TURN):
            yield part
        yield b"]}"

    async def _listed(self, where: str, order: str) -> AsyncGenerator[bytes]:
        begun = False
        for ids in _parts(await self._dispatcher.read(lambda s: s.sizes(f"{where} {order}"))):
            marks = ", ".join("?" * len(ids))
            condition = f"id IN ({marks}) AND {where} {order}"
            text = await self._dispatcher.read(lambda s, c=condition, i=ids: s.joined(_ENTRY, c, *i))
            if text:
                yield (f",{text}" if begun else text).encode()
                begun = True

    async def _make(self, former: asyncio.Task[bytes | None] | None) -> bytes | None:
        if former is not None:
            await asyncio.wait([former])
        # From here on a newcomer may have seen more than what is read now.
        self._current, self._next = self._next, None
        changes = self._dispatcher.changes
        if self._made is not None and self._made[0] == changes:
            return self._made[1]
        made = await self._dispatcher.read(_both)
        if made is None:
            return None
        self._made = (changes, made) if len(made) <= _KEPT_BYTES else None
        RELEASE.after(len(made))
        return made


def _both(store: Store) -> bytes | None:
    if sum(size for _, size in store.sizes("status IN ('pending', 'running')")) > _AT_ONCE:
        return None
    running = store.joined(_ENTRY, f"{_RUNNING} {_BY_AGE}")
    pending = store.joined(_ENTRY, f"{_PENDING} {_IN_TURN}")
    return f'{{"queue_running":[{running}],"queue_pending":[{pending}]}}'.encode()


def _parts(sizes: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    """Ids of jobs that are long enough together, at most 500 of them."""
    part: list[str] = []
    total = 0
    for job_id, size in sizes:
        part.append(job_id)
        total += size
        if total >= _PART or len(part) == 500:
            yield part
            part, total = [], 0
    if part:
        yield part
