"""The hub behind a real server: a client that never reads is dropped, and the others do not notice."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import time

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from loraloom.server.hub import Hub

NEWS = "x" * 100_000


async def _started(hub: Hub) -> tuple[uvicorn.Server, asyncio.Task[None], int]:
    async def endpoint(websocket: WebSocket) -> None:
        await hub.serve(websocket, websocket.query_params.get("clientId"), [("status", {})])

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
