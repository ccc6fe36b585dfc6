"""WebSocket clients. Each has a bounded line of its own: one that does not read only loses itself."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.websockets import WebSocket, WebSocketDisconnect

from loraloom.workflow.json_text import write_json

MAX_WAITING_BYTES = 16 * 1024 * 1024
SEND_SECONDS = 8.0
LATEST_SECONDS = 0.05
# What is sent again and again may take this share of the time, whatever it costs to make.
_COST_FACTOR = 10.0

Message: TypeAlias = str | bytes
Greeting: TypeAlias = Callable[[], Awaitable[list[tuple[str, dict[str, Any]]]]]


@dataclass(slots=True)
class Client:
    """One connection. flags: what its first message says it understands.

    waiting: messages that it gets all of. latest: by name, what makes those of which only the last counts;
    they are made when they are sent, and no more often than the client takes them.
    """

    sid: str
    socket: WebSocket
    flags: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    waiting: deque[Message] = field(default_factory=lambda: deque[Message]())
    waiting_bytes: int = 0
    latest: dict[str, Callable[[], Message]] = field(
        default_factory=lambda: dict[str, Callable[[], Message]]()
    )
    latest_from: float = 0.0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, message: Message) -> None:
        """Queue a message; a client that leaves too many bytes unread is let go."""
        if self.gone.is_set():
            return
        self.waiting.append(message)
        self.waiting_bytes += len(message)
        if self.waiting_bytes > MAX_WAITING_BYTES:
            self.gone.set()
        self.news.set()

    def put_latest(self, name: str, make: Callable[[], Message]) -> None:
        """Send what `make` makes, unless something newer of that name comes first."""
        if not self.gone.is_set():
            self.latest[name] = make
            self.news.set()

    def settle(self, name: str) -> None:
        """What waits under a name takes its place among the messages now; nothing newer will come."""
        if name in self.latest:
            self.put(self.latest.pop(name)())

    async def send_all(self) -> None:
        """Send what is queued until the client goes, or takes nothing for too long."""
        try:
            while True:
                await self._something()
                while self.waiting:
                    message = self.waiting.popleft()
                    self.waiting_bytes -= len(message)
                    await self._send(message)
                if self.latest and time.monotonic() >= self.latest_from:
                    await self._send_latest()
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            self.gone.set()

    async def _something(self) -> None:
        """Until there is something to send."""
        pause = max(0.0, self.latest_from - time.monotonic()) if self.latest else None
        try:
            async with asyncio.timeout(pause):
                await self.news.wait()
        except TimeoutError:
            return
        self.news.clear()

    async def _send_latest(self) -> None:
        begun = time.monotonic()
        made = [make() for make in self.latest.values()]
        self.latest.clear()
        cost = time.monotonic() - begun
        for message in made:
            await self._send(message)
        self.latest_from = time.monotonic() + max(LATEST_SECONDS, _COST_FACTOR * cost)

    async def _send(self, message: Message) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            if isinstance(message, str):
                await self.socket.send_text(message)
            else:
                await self.socket.send_bytes(message)


class Hub:
    """All clients, by id. A new connection under an id replaces the old one.

    ended: which jobs have ended lately of clients that may not have been told, for when they come back.
    """

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.ended = Endings()

    def send(self, kind: str, data: Mapping[str, Any]) -> None:
        """Send a JSON message to all."""
        if self.clients:
            text = encoded(kind, data)
            for client in [*self.clients.values()]:
                client.put(text)

    def find(self, sid: str | None) -> Client | None:
        return None if sid is None else self.clients.get(sid)

    async def serve(self, socket: WebSocket, sid: str | None, greeting: Greeting) -> None:
        """One connection, from its acceptance to its end."""
        try:
            await socket.accept()
        except (WebSocketDisconnect, RuntimeError, OSError):
            return
        client = Client(sid or uuid.uuid4().hex, socket)
        former = self.clients.get(client.sid)
        if former is not None:
            self.ended.untold(client.sid)
            former.gone.set()
        self.clients[client.sid] = client
        tasks: list[asyncio.Task[object]] = []
        try:
            await self._greet(client, greeting)
            tasks = [
                asyncio.create_task(client.send_all()),
                asyncio.create_task(_listen(client)),
                asyncio.create_task(client.gone.wait()),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.clients.get(client.sid) is client:
                del self.clients[client.sid]
                if client.gone.is_set():
                    self.ended.untold(client.sid)
            await _close(socket)

    async def _greet(self, client: Client, greeting: Greeting) -> None:
        """Put what a new client is told first before what has come for it meanwhile."""
        first = [
            encoded(kind, {**data, "sid": client.sid} if kind == "status" else data)
            for kind, data in await greeting()
        ]
        client.waiting.extendleft(reversed(first))
        client.waiting_bytes += sum(map(len, first))
        client.news.set()


class Endings:
    """Jobs that have ended, by client, with the time and whether the client was there."""

    _CLIENTS, _JOBS, _DOUBTFUL_SECONDS = 1000, 50, 90.0

    def __init__(self) -> None:
        self._known: dict[str, deque[tuple[str, float, bool]]] = {}

    def note(self, sid: str, job_id: str, told: bool) -> None:
        jobs = self._known.pop(sid, deque[tuple[str, float, bool]](maxlen=self._JOBS))
        jobs.append((job_id, time.monotonic(), told))
        self._known[sid] = jobs
        if len(self._known) > self._CLIENTS:
            del self._known[next(iter(self._known))]

    def untold(self, sid: str) -> None:
        """The client went without a word: what it was sent last it may not have got."""
        since = time.monotonic() - self._DOUBTFUL_SECONDS
        jobs = self._known.get(sid, ())
        changed = [(job_id, at, told and at < since) for job_id, at, told in jobs]
        if changed:
            self._known[sid] = deque(changed, self._JOBS)

    def take(self, sid: str) -> list[str]:
        """The jobs that this client has to be told of, which it now is."""
        return [job_id for job_id, _, told in self._known.pop(sid, ()) if not told]


FEATURES: dict[str, Any] = {"supports_preview_metadata": True, "max_upload_size": 100 * 1024 * 1024}


def encoded(kind: str, data: Mapping[str, Any]) -> str:
    return write_json({"type": kind, "data": data})


async def _listen(client: Client) -> None:
    """Read what the client says: its feature flags, first of all; the rest is ignored."""
    while True:
        message = await client.socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        # A client that talks without end must not keep the others waiting.
        await asyncio.sleep(0)
        text = message.get("text")
        if client.flags or not isinstance(text, str) or len(text) > 100_000:
            continue
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict) and said.get("type") == "feature_flags":
            data = said.get("data")
            if isinstance(data, dict):
                client.flags = {**data, "said": True}
                client.put(encoded("feature_flags", FEATURES))


async def _close(socket: WebSocket) -> None:
    try:
        async with asyncio.timeout(1.0):
            await socket.close(1008)
    except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
        return
