"""The hub behind a real server: a client that never reads is dropped, and the others do not notice."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import time
from typing import Any, cast

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from loraloom.server.hub import Client, Endings, Hub

NEWS = "x" * 100_000


async def _greeting() -> list[tuple[str, dict[str, Any]]]:
    return [("status", {})]


async def _started(hub: Hub) -> tuple[uvicorn.Server, asyncio.Task[None], int]:
    async def endpoint(websocket: WebSocket) -> None:
        await hub.serve(websocket, websocket.query_params.get("clientId"), _greeting)

    app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    return server, task, listener.getsockname()[1]


def _stalled(port: int) -> socket.socket:
    """A connection that opens and then never reads."""
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall(
        f"GET /ws?clientId=stalled HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return client


async def _scene() -> tuple[list[float], bool]:
    """Delays of a client that reads, and whether the one that does not was dropped."""
    hub = Hub()
    server, task, port = await _started(hub)
    stalled = _stalled(port)
    delays: list[float] = []
    try:
        async with connect(f"ws://127.0.0.1:{port}/ws?clientId=reader", max_size=None) as reader:
            await reader.recv()
            while "stalled" not in hub.clients:
                await asyncio.sleep(0.01)
            for _ in range(200):
                hub.send("news", {"sent": time.monotonic(), "text": NEWS})
                said = json.loads(await reader.recv())
                delays.append(time.monotonic() - said["data"]["sent"])
            for _ in range(300):
                if "stalled" not in hub.clients:
                    break
                await asyncio.sleep(0.05)
            dropped = "stalled" not in hub.clients and "reader" in hub.clients
    finally:
        stalled.close()
        server.should_exit = True
        await task
    return delays, dropped


@pytest.mark.timeout(60)
def test_a_client_that_never_reads_is_dropped_and_delays_nobody() -> None:
    delays, dropped = asyncio.run(_scene())
    assert dropped
    assert max(delays) < 1.0


async def _flood() -> list[float]:
    """Delays of a client that reads while another sends feature flags without end."""
    hub = Hub()
    server, task, port = await _started(hub)
    delays: list[float] = []
    flags = json.dumps({"type": "feature_flags", "data": {"a": "x" * 2000}})
    try:
        async with (
            connect(f"ws://127.0.0.1:{port}/ws?clientId=loud") as loud,
            connect(f"ws://127.0.0.1:{port}/ws?clientId=reader") as reader,
        ):
            await reader.recv()

            async def shout() -> None:
                for _ in range(5000):
                    await loud.send(flags)

            shouting = asyncio.create_task(shout())
            for _ in range(50):
                hub.send("news", {"sent": time.monotonic()})
                said = json.loads(await reader.recv())
                delays.append(time.monotonic() - said["data"]["sent"])
                await asyncio.sleep(0.005)
            await shouting
            answers = 0
            while True:
                try:
                    async with asyncio.timeout(0.3):
                        answers += json.loads(await loud.recv())["type"] == "feature_flags"
                except TimeoutError:
                    break
            assert answers == 1
    finally:
        server.should_exit = True
        await task
    return delays


@pytest.mark.timeout(60)
def test_a_client_that_talks_without_end_delays_nobody() -> None:
    assert max(asyncio.run(_flood())) < 0.5


def test_of_what_is_replaced_only_the_last_is_made() -> None:
    client = Client("a", cast("WebSocket", None))
    made: list[int] = []
    for number in range(100):
        client.put_latest("state", lambda n=number: made.append(n) or str(n))
    assert made == []
    client.put("before the end")
    client.settle("state")
    client.settle("state")
    assert [*client.waiting] == ["before the end", "99"]
    assert made == [99]


def test_endings_that_were_not_told_are_kept_for_a_while() -> None:
    ended = Endings()
    ended.note("a", "1", told=False)
    ended.note("a", "2", told=True)
    ended.note("b", "3", told=True)
    assert ended.take("a") == ["1"]
    assert ended.take("a") == []
    ended.untold("b")
    assert ended.take("b") == ["3"]
    for number in range(3000):
        ended.note(f"c{number}", "x", told=False)
    assert ended.take("c0") == [] and ended.take("c2999") == ["x"]
