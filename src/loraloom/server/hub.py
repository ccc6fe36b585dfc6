"""WebSocket clients. Each has a bounded line of its own: one that does not read only loses itself."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

MAX_WAITING_BYTES = 8 * 1024 * 1024
MAX_WAITING = 5_000
SEND_SECONDS = 8.0


@dataclass(slots=True)
class Client:
    """One connection. flags: what its first message says it understands."""

    sid: str
    socket: WebSocket
    flags: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    waiting: deque[str | bytes] = field(default_factory=lambda: deque[str | bytes]())
    waiting_bytes: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, message: str | bytes) -> None:
        """Queue a message; a client with too many unread ones is let go."""
        if self.gone.is_set():
            return
        self.waiting.append(message)
        self.waiting_bytes += len(message)
        if self.waiting_bytes > MAX_WAITING_BYTES or len(self.waiting) > MAX_WAITING:
            self.gone.set()
        self.news.set()

    async def send_all(self) -> None:
        """Send what is queued until the client goes, or takes nothing for too long."""
        while True:
            await self.news.wait()
            self.news.clear()
            while self.waiting:
                message = self.waiting.popleft()
                self.waiting_bytes -= len(message)
                try:
                    async with asyncio.timeout(SEND_SECONDS):
                        if isinstance(message, str):
                            await self.socket.send_text(message)
                        else:
                            await self.socket.send_bytes(message)
                except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
                    self.gone.set()
                    return


class Hub:
    """All clients, by id. A new connection under an id replaces the old one."""

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}

    def send(self, kind: str, data: Mapping[str, Any], sid: str | None = None) -> None:
        """Send a JSON message to one client, or to all."""
        text = json.dumps({"type": kind, "data": data}, ensure_ascii=False, separators=(",", ":"))
        for client in self._clients(sid):
            client.put(text)

    def find(self, sid: str | None) -> Client | None:
        return None if sid is None else self.clients.get(sid)

    async def serve(
        self, socket: WebSocket, sid: str | None, greeting: list[tuple[str, dict[str, Any]]]
    ) -> None:
        """One connection, from its acceptance to its end."""
        await socket.accept()
        client = Client(sid or uuid.uuid4().hex, socket)
        former = self.clients.get(client.sid)
        if former is not None:
            former.gone.set()
        self.clients[client.sid] = client
        for kind, data in greeting:
            if kind == "status":
                data = {**data, "sid": client.sid}
            client.put(json.dumps({"type": kind, "data": data}, ensure_ascii=False))
        tasks = [
            asyncio.create_task(client.send_all()),
            asyncio.create_task(self._listen(client)),
            asyncio.create_task(_gone(client)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.clients.get(client.sid) is client:
                del self.clients[client.sid]
            await _close(socket)

    def _clients(self, sid: str | None) -> list[Client]:
        if sid is None:
            return [*self.clients.values()]
        client = self.clients.get(sid)
        return [] if client is None else [client]

    async def _listen(self, client: Client) -> None:
        """Read what the client says: its feature flags, first of all; the rest is ignored."""
        while True:
            message = await client.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if not isinstance(text, str) or len(text) > 100_000:
                continue
            try:
                said = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if (
                isinstance(said, dict)
                and said.get("type") == "feature_flags"
                and isinstance(said.get("data"), dict)
            ):
                client.flags = said["data"]
                client.put(json.dumps({"type": "feature_flags", "data": FEATURES}))


FEATURES: dict[str, Any] = {"supports_preview_metadata": True, "max_upload_size": 100 * 1024 * 1024}


async def _gone(client: Client) -> None:
    await client.gone.wait()


async def _close(socket: WebSocket) -> None:
    try:
        async with asyncio.timeout(1.0):
            await socket.close(1008)
    except (TimeoutError, RuntimeError, OSError):
        return
