"""A server with ComfyUI's HTTP interface as a process of its own, for benchmarks that compare with it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 1800
"""Seconds after which a server counts as stuck."""
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class PeerServer:
    """One that runs. url: without a path."""

    url: str
    process: subprocess.Popen[bytes]

    def draw(self, prompt: Mapping[str, Any]) -> None:
        """Queue a workflow in API format and wait until it is done."""
        job = self._asked("/prompt", {"prompt": prompt})["prompt_id"]
        history = self.patient(lambda: self._asked(f"/history/{job}").get(job))
        if history["status"]["status_str"] != "success":
            raise SystemExit(f"the server failed: {json.dumps(history['status'])[:2000]}")

    def is_up(self) -> bool:
        return bool(self._asked("/system_stats"))

    def patient(self, ask: Callable[[], Any]) -> Any:
        """What is answered, once there is an answer."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if answer := ask():
                    return answer
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            time.sleep(_POLL_SECONDS)
        raise SystemExit(f"the server at {self.url} ended or did not answer in time")

    def _asked(self, route: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def started(words: Sequence[str], folder: Path | None = None) -> Generator[PeerServer]:
    """Start a command in a folder, "{port}" in its words standing for a free one; it answers from here on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [word.replace("{port}", str(port)) for word in words]
    quiet = subprocess.DEVNULL
    server = PeerServer(
        f"http://127.0.0.1:{port}", subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
    )
    try:
        server.patient(server.is_up)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)
