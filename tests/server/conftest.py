"""Real servers in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import httpx
import pytest


@dataclass
class RunningServer:
    """A server process and an HTTP client for it."""

    process: subprocess.Popen[str]
    url: str
    folder: Path
    http: httpx.Client
    seconds_to_listen: float

    @property
    def ws(self) -> str:
        return self.url.replace("http", "ws", 1) + "/ws"

    def submit(self, prompt: dict[str, Any], **more: Any) -> str:
        answer = self.http.post("/prompt", json={"prompt": prompt, **more})
        assert answer.status_code == 200, answer.text
        return cast("str", answer.json()["prompt_id"])

    def history(self, job_id: str, seconds: float = 30) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.http.get(f"/history/{job_id}").json()
            if found:
                return cast("dict[str, Any]", found[job_id])
            time.sleep(0.05)
        raise AssertionError(f"job {job_id} has not finished after {seconds} s")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def start(folder: Path, *options: str) -> RunningServer:
    """Start a server and wait until it listens."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("tiny_server.py")), str(folder), *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    stderr = cast("IO[str]", process.stderr)
    lines: list[str] = []
    for line in stderr:
        lines.append(line)
        if "listens on" in line:
            url = line.split()[-1]
            seconds = time.monotonic() - begun
            return RunningServer(process, url, folder, httpx.Client(base_url=url, timeout=30), seconds)
    process.wait()
    raise AssertionError("".join(lines))


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers on one folder; all end with the test."""
    running: list[RunningServer] = []

    def begin(*options: str) -> RunningServer:
        running.append(start(tmp_path, *options))
        return running[-1]

    yield begin
    for server in running:
        server.http.close()
        if server.process.poll() is None:
            server.process.terminate()
        server.process.communicate(timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests of a module."""
    found = start(tmp_path_factory.mktemp("server"))
    yield found
    found.http.close()
    found.process.terminate()
    found.process.communicate(timeout=20)
