"""Clients that are slow, that break off, and that send more than is taken."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.jobs.tiny_runner import prompt
from tests.server.abrupt import all_ways
from tests.server.running import RunningServer, start

from loraloom.server.bodies import read_bytes
from loraloom.server.patience import Patience, PatientProtocol


class Hasty(PatientProtocol):
    header_seconds = 0.6
    sends_at_once: ClassVar[list[bool]] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        self.sends_at_once.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)


@asynccontextmanager
async def hasty_server() -> AsyncGenerator[int]:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(len(await read_bytes(request, 1000))))

    app = Patience(Starlette(routes=[Route("/", endpoint, methods=["POST"])]), 0.6, 1000)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", http=Hasty, timeout_keep_alive=60)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    await task


async def answer(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back until the server ends the connection, of parts that are sent with pauses.

    A part that is sent behind its end may be answered by a reset, which takes nothing of what came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(8):
            got = b""
            with contextlib.suppress(ConnectionResetError):
                while some := await reader.read(1 << 16):
                    got += some
            return got
    finally:
        sending.cancel()
        writer.transport.abort()


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "parts", [[], [b"POST"], [HEAD], [b"P"] + [b"O"] * 100, [HEAD] + [b"X: y\r\n"] * 100], ids=range(5)
)
def test_headers_that_do_not_come_end_the_connection(parts: list[bytes]) -> None:
    async def test() -> None:
        async with hasty_server() as port:
            begun = time.monotonic()
            assert b"200 OK" not in await answer(port, *parts, pause=0.1)
            assert time.monotonic() - begun < 5

    asyncio.run(test())


@pytest.mark.parametrize("parts", [[b""], [b"x" * 10], [b"x"] * 200], ids=range(3))
def test_a_body_that_does_not_come_is_answered_with_408(parts: list[bytes]) -> None:
    async def test() -> None:
        async with hasty_server() as port:
            begun = time.monotonic()
            got = await answer(port, HEAD + b"Content-Length: 900\r\n\r\n", *parts, pause=0.05)
            assert b" 408 " in got.partition(b"\r\n")[0]
            assert time.monotonic() - begun < 5

    asyncio.run(test())


def test_an_answer_does_not_wait_until_its_first_packet_is_confirmed() -> None:
    async def test() -> None:
        async with hasty_server() as port:
            assert b"200 OK" in await answer(port, HEAD + b"Connection: close\r\nContent-Length: 1\r\n\r\nx")

    Hasty.sends_at_once.clear()
    asyncio.run(test())
    assert Hasty.sends_at_once == [True]


def test_who_sends_all_and_then_waits_is_not_cut_off() -> None:
    async def test() -> None:
        async with hasty_server() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(HEAD + b"Content-Length: 5\r\n\r\nabcde")
                assert b"200" in await reader.readline()
                await reader.readuntil(b"\r\n\r\n5")
                await asyncio.sleep(0.8)
            writer.close()

    asyncio.run(test())


@pytest.mark.parametrize("path", ["/prompt", "/v1/jobs", "/userdata/a", "/nowhere", "/upload/image"])
def test_a_body_that_is_too_long_is_refused_and_not_reset(
    start_server: Callable[..., RunningServer], path: str
) -> None:
    server = start_server("--paused", "--max-json", "100000")
    body = b"x" * 40_000_000 if path != "/upload/image" else b"x" * 120_000_000
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.request("POST", path, body)
    got = connection.getresponse()
    assert got.status in ((413,) if path != "/nowhere" else (404, 405))
    got.read()
    # The connection is of use still.
    connection.request("GET", "/prompt")
    assert connection.getresponse().status == 200
    connection.close()


def test_who_asks_first_is_told_before_it_sends(server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            f"POST /prompt HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\n"
            "Content-Length: 900000000\r\n\r\n".encode()
        )
        assert b" 413 " in client.recv(1000)


def test_breaking_off_leaves_no_trace(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("abrupt")
    (folder / "output").mkdir()
    (folder / "output/big.bin").write_bytes(b"x" * 30_000_000)
    server = start(folder, stderr=folder / "stderr.txt")
    try:
        job_id = server.submit(prompt("Wait", seconds=60), client_id="y1")
        port = int(server.url.rpartition(":")[2])
        for _ in range(3):
            all_ways(port, job_id)
        assert server.http.get("/prompt").status_code == 200
        server.http.post("/interrupt")
        server.history(job_id)
        time.sleep(1.0)
    finally:
        server.end()
    said = (folder / "stderr.txt").read_text()
    assert "Traceback" not in said and "Exception" not in said, said[-3000:]
