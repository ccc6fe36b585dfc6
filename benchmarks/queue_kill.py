"""Kills the server at random moments and counts what is lost.

    python benchmarks/queue_kill.py --kills 40 --jobs 400

Small picture jobs are submitted while `loraloom serve` is killed with SIGKILL again and again. At the end,
every acknowledged job must have one result, and every picture that a result names must be whole.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from PIL import Image


@dataclass
class Server:
    """`loraloom serve` on a folder, started again after every kill."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    ready: list[float] = field(default_factory=lambda: list[float]())

    def start(self) -> None:
        begun = time.monotonic()
        log = open(self.folder / "server.log", "ab")  # noqa: SIM115 - the child keeps it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loraloom", "serve", "--port", str(self.port), "--no-frontend"],
            cwd=self.folder,
            stderr=cast("IO[bytes]", log),
        )
        log.close()
        while self.call("/prompt") is None:
            if time.monotonic() - begun > 60 or self.process.poll() is not None:
                raise SystemExit((self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.02)
        self.ready.append(time.monotonic() - begun)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON answer; None when there is no server."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout=10) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError):
            return None


def job(number: int) -> dict[str, Any]:
    size = 64 + number % 64
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": size, "height": 64, "batch_size": 1, "color": number},
        },
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": f"kill/job{number}"},
        },
    }


def unfinished(server: Server, acknowledged: set[str]) -> set[str]:
    history = server.call("/history")
    return acknowledged if history is None else acknowledged - set(history)


def examine(folder: Path, acknowledged: set[str], history: dict[str, Any]) -> dict[str, int]:
    """Counts what went wrong."""
    database = sqlite3.connect(folder / "user" / "queue.db")
    rows = Counter(row[0] for row in database.execute("SELECT id FROM jobs WHERE result IS NOT NULL"))
    (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    named: list[str] = []
    for entry in history.values():
        named += [image["filename"] for out in entry["outputs"].values() for image in out["images"]]
    damaged = 0
    for path in (folder / "output" / "kill").glob("*.png"):
        try:
            with Image.open(path) as picture:
                picture.load()
        except OSError:
            damaged += 1
    missing = sum(not (folder / "output" / "kill" / name).is_file() for name in named)
    written = len([*(folder / "output" / "kill").glob("*.png")])
    return {
        "acknowledged": len(acknowledged),
        "lost": len(acknowledged - set(history)),
        "failed": sum(not e["status"]["completed"] for e in history.values()),
        "duplicated_results": sum(count > 1 for count in rows.values()) + len(named) - len(set(named)),
        "missing_files": missing,
        "truncated_files": damaged,
        "pictures_without_a_result": written - len(set(named)),
        "database_damaged": int(integrity != "ok"),
    }


def wait(what: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8931)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds between two kills, at most")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="queue-kill-"))
    server = Server(folder, options.port)
    acknowledged: set[str] = set()
    submitted = 0
    begun = time.monotonic()
    for _ in range(options.kills):
        server.start()
        until = time.monotonic() + rng.uniform(0.0, options.longest)
        due = submitted + options.jobs // options.kills
        while time.monotonic() < until:
            if submitted < due:
                answer = server.call("/prompt", {"prompt": job(submitted)})
                if answer is not None:
                    acknowledged.add(answer["prompt_id"])
                submitted += 1
            else:
                time.sleep(0.01)
        server.kill()
    server.start()
    while submitted < options.jobs:
        acknowledged.add(server.call("/prompt", {"prompt": job(submitted)})["prompt_id"])
        submitted += 1
    wait(lambda: not unfinished(server, acknowledged), 300)
    result: dict[str, Any] = examine(folder, acknowledged, server.call("/history"))
    result |= {"kills": options.kills, "ready_s_max": round(max(server.ready), 2),
               "ready_s_mean": round(sum(server.ready) / len(server.ready), 2),
               "seconds": round(time.monotonic() - begun)}  # fmt: skip
    server.kill()
    print(json.dumps(result, indent=1))
    bad = ("lost", "failed", "duplicated_results", "missing_files", "truncated_files", "database_damaged")
    if any(result[name] for name in bad):
        raise SystemExit(f"something was lost; see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
