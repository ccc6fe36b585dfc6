"""How long a client may take: for the headers of a request, for its body; and that it gets its answer.

A client that sends slowly, or never ends, holds a connection and what was read of its body. A client that
sends all before it reads would get a reset instead of a refusal that comes early: what is left of a refused
body is read and thrown away first.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field

import h11
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 1024
THROWN_AWAY_BYTES = 1 << 30


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose request line and headers have to come within a time."""

    header_seconds = HEADER_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._clear_deadline()
        elif self._deadline is None:
            self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self._give_up)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.transport.close()


def _send_at_once(transport: asyncio.Transport) -> None:
    """The head and the body of an answer are two packets; without this the second waits until the client's
    system has confirmed the first, which it puts off for 40 ms. asyncio does it for sockets that state their
    protocol, which those of listeners made by `socket.create_server` do not."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Patience:
    """The layer around all others. seconds, bytes_per_second: both together say how long a body may take."""

    def __init__(
        self, app: ASGIApp, seconds: float = BODY_SECONDS, bytes_per_second: float = BODY_BYTES_PER_SECOND
    ) -> None:
        self._app, self._seconds, self._rate = app, seconds, bytes_per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._seconds, self._rate, complete=_has_none(scope))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and not await body.thrown_away(scope):
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, body.receive, answer)


@dataclass(slots=True)
class _Body:
    """What has come of a request's body, and since when."""

    source: Receive
    seconds: float
    rate: float
    complete: bool
    got: int = 0
    begun: float = field(default_factory=time.monotonic)
    late: bool = False

    async def receive(self) -> Message:
        """The next part; raises HTTPException 408 when it comes too late."""
        if self.complete:
            return await self.source()
        left = self.seconds + self.got / self.rate - (time.monotonic() - self.begun)
        try:
            async with asyncio.timeout(max(0.0, left)):
                message = await self.source()
        except TimeoutError as error:
            self.late = True
            raise HTTPException(408, f"the body did not come in time ({self.got} bytes did)") from error
        self.got += len(message.get("body", b""))
        self.complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def thrown_away(self, scope: Scope) -> bool:
        """Read the body to its end; False when it has not ended and the connection is of no more use."""
        if self.complete:
            return True
        if self.late or Headers(scope=scope).get("expect", "").lower() == "100-continue":
            return False
        limit = self.got + THROWN_AWAY_BYTES
        try:
            while not self.complete and self.got < limit:
                await self.receive()
        except HTTPException:
            return False
        return self.complete


def _has_none(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
