"""Many clients at once: how long `POST /prompt` takes, and whether all their jobs are done.

python benchmarks/queue_load.py --clients 64 --jobs 2000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, cast


class Connection:
    """One kept-alive connection; plain sockets, so that the client's own work stays out of the times."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 28)
        reader, writer = self._streams
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost:{self._port}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.split("content-length:")[1].split("\r\n")[0])
        return int(answer.split()[1]), json.loads(await reader.readexactly(length))


def prompt(color: int) -> bytes:
    picture = {"width": 16, "height": 16, "batch_size": 1, "color": color}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": picture},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    return json.dumps({"prompt": graph}).encode()


async def submit(port: int, numbers: Iterator[int], times: list[float]) -> int:
    """Submit jobs until there are no more numbers; how many were refused."""
    connection, refused = Connection(port), 0
    for number in numbers:
        body = prompt(number)
        begun = time.perf_counter()
        status, _ = await connection.call("POST", "/prompt", body)
        times.append(time.perf_counter() - begun)
        refused += status != 200
    return refused


async def measure(port: int, clients: int, jobs: int) -> dict[str, float]:
    times: list[float] = []
    numbers = iter(range(jobs))
    begun = time.perf_counter()
    refused = sum(await asyncio.gather(*(submit(port, numbers, times) for _ in range(clients))))
    submitted = time.perf_counter() - begun
    connection = Connection(port)
    while (await connection.call("GET", "/prompt"))[1]["exec_info"]["queue_remaining"]:
        await asyncio.sleep(0.5)
    _, history = await connection.call("GET", "/history")
    cuts = statistics.quantiles(times, n=100)
    return {
        "clients": clients,
        "jobs": jobs,
        "refused": refused,
        "succeeded": sum(entry["status"]["completed"] for entry in history.values()),
        "post_p50_ms": round(cuts[49] * 1000, 1),
        "post_p99_ms": round(cuts[98] * 1000, 1),
        "submitted_s": round(submitted, 1),
        "done_s": round(time.perf_counter() - begun, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument(
        "--wait", type=float, default=8.0, help="seconds before the first job, for the worker"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "loraloom", "serve", "--port", "0", "--no-frontend"]
        server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        try:
            lines = cast("IO[str]", server.stderr)
            port = next(int(line.rpartition(":")[2]) for line in lines if "listens on" in line)
            time.sleep(options.wait)
            print(json.dumps(asyncio.run(measure(port, options.clients, options.jobs)), indent=1))
        finally:
            server.terminate()
            server.communicate()


if __name__ == "__main__":
    main()
