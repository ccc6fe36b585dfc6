"""What goes wrong for a while is said, and over when it is over."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from tests.jobs.tiny_runner import prompt
from tests.server.running import RunningServer

from loraloom.jobs.database import BUSY_MILLISECONDS

resource = pytest.importorskip("resource")
if not hasattr(resource, "prlimit"):
    pytest.skip("limits of another process are changed on Linux", allow_module_level=True)


def _until(condition: Callable[[], Any], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_jobs_wait_while_no_worker_can_be_started(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    server.history(server.submit(prompt()))
    worker: Callable[[], dict[str, Any]] = lambda: server.http.get("/v1/queue").json()["worker"]  # noqa: E731
    pid, server_pid = worker()["pid"], server.process.pid
    soft, hard = resource.prlimit(server_pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server_pid, resource.RLIMIT_NOFILE, (8, hard))
    try:
        psutil.Process(pid).kill()
        job = server.submit(prompt(value=8))
        _until(lambda: "could not start" in worker().get("error", ""))
        assert server.http.get(f"/v1/jobs/{job}").json()["status"] == "pending"
    finally:
        resource.prlimit(server_pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert server.history(job)["status"]["status_str"] == "success"
    assert "error" not in worker()


def test_a_locked_queue_answers_503_and_loses_and_doubles_nothing(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server()
    running = server.submit(prompt("Hold", value=5))
    _until(lambda: server.http.get(f"/v1/jobs/{running}").json()["status"] == "running")
    other = sqlite3.connect(server.folder / "user/queue.db", timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        refused = server.http.post("/prompt", json={"prompt": prompt()})
        assert (refused.status_code, refused.json()["type"]) == (503, "queue_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert server.http.post("/v1/jobs", json={"workflow": prompt()}).status_code == 503
        for path in ("/queue", "/history", "/prompt", "/v1/jobs", "/api/jobs"):
            begun = time.monotonic()
            assert server.http.get(path).status_code == 200
            assert time.monotonic() - begun < BUSY_MILLISECONDS / 1000  # it did not wait for the lock
        (server.folder / "go").touch()
        _until(lambda: "locked" in server.http.get("/v1/queue").json()["worker"].get("error", ""))
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert server.history(running)["status"]["status_str"] == "success"
    assert server.history(server.submit(prompt(value=6)))["status"]["status_str"] == "success"
    assert len([*(server.folder / "output").iterdir()]) == 2
    assert server.http.get(f"/v1/jobs/{running}").json()["attempts"] == 1


def test_a_row_that_cannot_be_read_is_put_aside(start_server: Callable[..., RunningServer]) -> None:
    server = start_server("--paused")
    bad, good = server.submit(prompt(value=1)), server.submit(prompt(value=2))
    other = sqlite3.connect(server.folder / "user/queue.db", isolation_level=None)
    other.execute("UPDATE jobs SET request = '{' WHERE id = ?", (bad,))
    other.close()
    for path in ("/queue", "/history", "/v1/jobs", "/api/jobs", f"/v1/jobs/{bad}", f"/api/jobs/{bad}"):
        assert server.http.get(path).status_code == 200, path
    server.http.post("/v1/queue/resume")
    assert server.history(good)["status"]["status_str"] == "success"
    job = server.http.get(f"/v1/jobs/{bad}").json()
    assert (job["status"], job["error"]["type"]) == ("quarantined", "unreadable")
