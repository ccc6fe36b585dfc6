"""Many clients and a long queue: how long `POST /prompt` and `GET /queue` take while thousands of jobs wait.
With --run also whether all of them are done. Fails when the bars are not held: of 100 submissions 99 take at
most 50 ms, of 100 lists 99 at most 200 ms.

python benchmarks/queue_load.py --clients 64 --waiting 10000
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

POST_BAR_MS, GET_QUEUE_BAR_MS = 50, 200


class Connection:
    """One kept-alive connection; plain sockets, so that the client's own work stays out of the times."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def until_ready(self) -> None:
        """Until the worker has started, which takes a processor meanwhile."""
        while not (await self.call("GET", "/v1/queue"))[1]["worker"]:
            await asyncio.sleep(0.2)

    async def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        """Status and JSON of an answer."""
        status, content = await self._answer(method, path, body)
        return status, json.loads(content)

    async def size(self, method: str, path: str) -> int:
        """The bytes of an answer, which is not read as JSON: the client's work is none of the server's."""
        return len((await self._answer(method, path, b""))[1])

    async def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 28)
        reader, writer = self._streams
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost:{self._port}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.split("content-length:")[1].split("\r\n")[0])
        return int(answer.split()[1]), await reader.readexactly(length)


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


async def watch(port: int, over: asyncio.Event, times: list[float]) -> int:
    """Ask for the whole queue again and again, as a page does; the bytes of the last answer."""
    connection, size = Connection(port), 0
    while not over.is_set():
        begun = time.perf_counter()
        size = await connection.size("GET", "/queue")
        times.append(time.perf_counter() - begun)
        await asyncio.sleep(0.05)
    return size


async def waiting(port: int, options: argparse.Namespace) -> dict[str, float]:
    """Times with thousands of jobs waiting, none of which runs: many clients submit more, one watches."""
    fill, posts, reads = list[float](), list[float](), list[float]()

    async def submit_all(count: int, times: list[float]) -> int:
        numbers = iter(range(count))
        return sum(await asyncio.gather(*(submit(port, numbers, times) for _ in range(options.clients))))

    await submit_all(options.waiting, fill)
    over = asyncio.Event()
    watching = asyncio.create_task(watch(port, over, reads))
    refused = await submit_all(options.jobs, posts)
    over.set()
    return {
        "clients": options.clients,
        "waiting": options.waiting,
        "refused": refused,
        "queue_bytes": await watching,
        **percentiles("post", posts),
        **percentiles("get_queue", reads),
        "post_p99_bar_ms": POST_BAR_MS,
        "get_queue_p99_bar_ms": GET_QUEUE_BAR_MS,
    }


def percentiles(name: str, times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {
        f"{name}_p50_ms": round(cuts[49] * 1000, 1),
        f"{name}_p99_ms": round(cuts[98] * 1000, 1),
    }


async def running(port: int, options: argparse.Namespace) -> dict[str, float]:
    """The same jobs, run to their end: whether all are done."""
    connection = Connection(port)
    begun = time.perf_counter()
    await connection.call("POST", "/v1/queue/resume")
    while (await connection.call("GET", "/prompt"))[1]["exec_info"]["queue_remaining"]:
        await asyncio.sleep(0.5)
    _, done = await connection.call("GET", "/v1/jobs?status=completed&limit=1")
    return {
        "jobs": options.waiting + options.jobs,
        "succeeded": done["total"],
        "done_s": round(time.perf_counter() - begun, 1),
    }


def held(found: dict[str, float]) -> bool:
    """Whether nothing was refused or lost, and the times are within the bars."""
    fast = found["post_p99_ms"] <= POST_BAR_MS and found["get_queue_p99_ms"] <= GET_QUEUE_BAR_MS
    return fast and not found["refused"] and found.get("succeeded") == found.get("jobs")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--waiting", type=int, default=10_000, help="jobs that wait while times are taken")
    parser.add_argument("--jobs", type=int, default=5000, help="jobs whose submission is timed")
    parser.add_argument("--run", action="store_true", help="then run all jobs to their end")
    options = parser.parse_args()
    total = str(options.waiting + options.jobs)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "loraloom", "serve", "--port", "0", "--no-frontend", "--start-paused",
            "--max-queue", total, "--max-history", total,
        ]  # fmt: skip
        server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        try:
            lines = cast("IO[str]", server.stderr)
            port = next(int(line.rpartition(":")[2]) for line in lines if "listens on" in line)
            asyncio.run(Connection(port).until_ready())
            found = asyncio.run(waiting(port, options))
            if options.run:
                found |= asyncio.run(running(port, options))
            print(json.dumps(found, indent=1))
            if not held(found):
                sys.exit("the bars are not held")
        finally:
            server.terminate()
            server.communicate()


if __name__ == "__main__":
    main()
