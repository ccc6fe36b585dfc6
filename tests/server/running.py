"""A real server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import httpx

ROOT = Path(__file__).parents[2]


@dataclass
class RunningServer:
    """A server process and an HTTP client for it."""

    process: subprocess.Popen[str]
    url: str
    folder: Path
    http: httpx.Client
    seconds_to_listen: float
    _errors: threading.Thread

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

    def end(self) -> None:
        """End the process, and wait until all it has said is read."""
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        self._errors.join(5)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def start(folder: Path, *options: str, stderr: Path | None = None) -> RunningServer:
    """Start a server and wait until it listens. stderr: where what it says then goes."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.tiny_server", str(folder), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
    )
    said = cast("IO[str]", process.stderr)
    lines: list[str] = []
    for line in said:
        lines.append(line)
        if "listens on" in line:
            url = line.split()[-1]
            seconds = time.monotonic() - begun
            errors = threading.Thread(target=drain, args=(said, stderr), daemon=True)
            errors.start()
            return RunningServer(
                process, url, folder, httpx.Client(base_url=url, timeout=30), seconds, errors
            )
    process.wait()
    raise AssertionError("".join(lines))


def drain(stream: IO[str], into: Path | None = None) -> None:
    """Read a stream to its end, so that who writes it is never held up."""
    with stream, open(into or os.devnull, "w", encoding="utf-8") as file:
        file.writelines(stream)
