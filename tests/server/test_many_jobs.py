"""Thousands of jobs: what waits is listed, moved, kept over a restart and cleared; what runs is done once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from tests.jobs.tiny_runner import prompt
from tests.server.running import RunningServer

from loraloom.jobs.job import Request
from loraloom.jobs.store import Store

WAITING = 10_000
DONE = 2000
KILLS = 10


def ids(server: RunningServer) -> list[str]:
    """All that wait, in order."""
    entries: list[list[Any]] = server.http.get("/queue").json()["queue_pending"]
    return [entry[1] for entry in entries]


def test_ten_thousand_wait_and_nobody_else_does(start_server: Callable[..., RunningServer]) -> None:
    server = start_server("--paused")
    server.end()
    store = Store(server.folder / "user/queue.db", max_pending=2 * WAITING)
    with store.transaction():
        jobs = [store.submit(Request(prompt(value=value))).id for value in range(WAITING)]
    store.close()
    server = start_server("--paused")
    spent = psutil.Process(server.process.pid)
    begun = sum(spent.cpu_times()[:2])
    assert ids(server) == jobs
    page = server.http.get(
        "/v1/jobs", params={"status": "pending", "limit": 50, "offset": WAITING - 50}
    ).json()
    assert ([job["id"] for job in page["jobs"]], page["total"]) == (jobs[49::-1], WAITING)
    assert server.http.get("/prompt").json() == {"exec_info": {"queue_remaining": WAITING}}
    last, first = jobs[-1], server.http.get(f"/v1/jobs/{jobs[0]}").json()
    assert server.http.patch(f"/v1/jobs/{last}", json={"number": first["number"] - 1}).status_code == 200
    assert server.http.patch(f"/v1/jobs/{jobs[500]}", json={"priority": 1}).status_code == 200
    moved = [jobs[500], last, *jobs[:500], *jobs[501:-1]]
    assert ids(server) == moved
    assert server.http.post("/queue", json={"delete": moved[100:300]}).status_code == 200
    left = moved[:100] + moved[300:]
    spent_so_far = sum(spent.cpu_times()[:2]) - begun
    server.end()
    server = start_server("--paused")
    spent = psutil.Process(server.process.pid)
    begun = sum(spent.cpu_times()[:2])
    assert ids(server) == left
    assert server.http.post("/queue", json={"clear": True}).status_code == 200
    assert ids(server) == []
    totals = {status: server.http.get("/v1/jobs", params={"status": status}).json()["total"]
              for status in ("pending", "cancelled")}  # fmt: skip
    assert totals == {"pending": 0, "cancelled": WAITING}
    assert spent_so_far + sum(spent.cpu_times()[:2]) - begun < 10


@pytest.mark.heavy
def test_thousands_of_jobs_are_done_once_though_workers_die(
    start_server: Callable[..., RunningServer],
) -> None:
    """Ten times a worker is killed at a random moment: no job is lost, none has two results, and none is put
    aside that was not running twice when its worker was killed."""
    server, chance, over = start_server(), random.Random(1), threading.Event()

    def kill_workers() -> int:
        killed = 0
        while killed < KILLS and not over.wait(chance.uniform(0.3, 1.0)):
            worker = server.http.get("/v1/queue").json()["worker"]
            if "pid" in worker and psutil.pid_exists(worker["pid"]):
                psutil.Process(worker["pid"]).kill()
                killed += 1
        return killed

    with ThreadPoolExecutor(9) as pool:
        kills = pool.submit(kill_workers)
        jobs = [*pool.map(lambda value: server.submit(prompt(value=value)), range(DONE))]
        until = time.monotonic() + 1200
        while (left := server.http.get("/prompt").json()["exec_info"]["queue_remaining"]) > 0:
            assert time.monotonic() < until, f"{left} jobs are left"
            time.sleep(0.2)
        over.set()
        assert kills.result() == KILLS
    assert len(set(jobs)) == DONE
    history = server.http.get("/history", params={"max_items": 2 * DONE}).json()
    done = {job: entry for job, entry in history.items() if entry["status"]["status_str"] == "success"}
    assert set(history) == set(jobs) and len(done) >= DONE - KILLS // 2
    names = [entry["outputs"]["9"]["images"][0]["filename"] for entry in done.values()]
    assert len(set(names)) == len(done)
    for job, entry in done.items():
        made = server.folder / "output" / entry["outputs"]["9"]["images"][0]["filename"]
        assert made.read_text() == str(entry["prompt"][2]["1"]["inputs"]["value"]) == str(jobs.index(job))
