"""The power goes at any moment: what the server has promised is there, and what is there is whole."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import httpx
import pytest
from PIL import Image

from loraloom.jobs.job import Status
from loraloom.jobs.store import Store
from tests.power.disk import ACKNOWLEDGED, LOSSES, Disk, acknowledge, read_records
from tests.power.recorded import Recording, recorded
from tests.server.running import ROOT, drain

JOBS, MOMENTS = 12, 40


def picture(color: int) -> dict[str, Any]:
    """A graph that takes some room, so that SQLite's log is written back on the way."""
    shape = {"width": 16, "height": 16, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": shape, "_meta": {"title": "t" * 300_000}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a/b/red"}},
    }


@contextmanager
def served(root: Path, environment: dict[str, str] | None = None) -> Generator[httpx.Client]:
    """`loraloom serve` with all its folders under `root`; killed at the end."""
    options = ["--port", "0", "--no-frontend", "--device", "cpu"]
    folders = [f"--{name}-dir={root / name}" for name in ("output", "input", "user")]
    process = subprocess.Popen(
        [sys.executable, "-m", "loraloom", "serve", *options, *folders],
        stderr=subprocess.PIPE, text=True, cwd=root.parent,
        env={**(environment or os.environ), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = cast("IO[str]", process.stderr)
    try:
        url = next(line.split()[-1] for line in said if "listens on" in line)
        threading.Thread(target=drain, args=(said,), daemon=True).start()
        with httpx.Client(base_url=url, timeout=60) as http:
            yield http
    finally:
        process.kill()
        process.wait()


def finished(http: httpx.Client, job_id: str) -> dict[str, Any]:
    until = time.monotonic() + 120
    while not (found := http.get(f"/history/{job_id}").json()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return cast("dict[str, Any]", found[job_id])


@dataclass
class Promised:
    """What clients have been told, so far. jobs: id → status; files: path → bytes."""

    jobs: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    files: dict[str, bytes] = field(default_factory=lambda: dict[str, bytes]())


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A server that has drawn pictures, cancelled a job, taken an upload, settings and saved workflows."""
    found = recorded(tmp_path_factory.mktemp("power"))
    with served(found.root, found.environment) as http:

        def promise(**said: str) -> None:
            acknowledge(found.file, json.dumps(said))

        def submit(color: int) -> str:
            job_id = cast("str", http.post("/prompt", json={"prompt": picture(color)}).json()["prompt_id"])
            promise(job=job_id, status="pending")
            return job_id

        for number in range(JOBS // 3):
            ids = [submit(3 * number + color) for color in range(3)]
            if number == 1:
                http.post("/v1/queue/pause").raise_for_status()
                http.post(f"/v1/jobs/{(last := submit(99))}/cancel").raise_for_status()
                promise(job=last, status="cancelled")
                http.post("/v1/queue/resume").raise_for_status()
            buffer = io.BytesIO()
            Image.new("RGB", (40, 40), (number, 0, 0)).save(buffer, "PNG")
            upload = {"image": (f"up{number}.png", buffer.getvalue())}
            http.post("/upload/image", files=upload).raise_for_status()
            promise(file=f"input/up{number}.png", content=buffer.getvalue().hex())
            text = json.dumps({"n": number}).encode()
            where = f"/userdata/workflows%2Fw{number}.json"
            http.post(where, content=text).raise_for_status()
            promise(file=f"user/default/workflows/w{number}.json", content=text.hex())
            for job_id in ids:
                entry = finished(http, job_id)
                assert entry["status"]["status_str"] == "success"
                named = entry["outputs"]["2"]["images"][0]
                content = http.get("/view", params=named).content
                promise(
                    job=job_id, status="completed",
                    file=f"output/{named['subfolder']}/{named['filename']}", content=content.hex(),
                )  # fmt: skip
    return found


def moments(recording: Recording, rng: random.Random) -> Generator[tuple[Disk, Promised]]:
    """The disk and what has been promised, just after promises and at other moments."""
    records = [*read_records(recording.file)]
    after = [n + 1 for n, record in enumerate(records) if record.kind == ACKNOWLEDGED]
    chosen = {
        *rng.sample(after, min(len(after), MOMENTS // 2)),
        *rng.sample(range(len(records)), MOMENTS // 2),
    }
    disk, promised = Disk(recording.root), Promised()
    for number, record in enumerate(records):
        if number in chosen:
            yield disk, promised
        if record.kind != ACKNOWLEDGED:
            disk.see(record)
            continue
        said = json.loads(record.path)
        if "job" in said:
            promised.jobs[said["job"]] = said["status"]
        if "file" in said:
            promised.files[said["file"]] = bytes.fromhex(said["content"])
    yield disk, promised


def test_at_any_moment_what_was_promised_is_there_and_what_is_there_is_whole(
    recording: Recording, tmp_path: Path
) -> None:
    rng, count, waiting = random.Random(1), 0, 0
    for disk, promised in moments(recording, rng):
        for loss in LOSSES:
            count += 1
            folder = tmp_path / str(count)
            folder.mkdir()
            disk.write(folder, loss, rng)
            for name, content in promised.files.items():
                assert (folder / name).read_bytes() == content, (name, loss)
            for path in [*(folder / "output").rglob("*.png"), *(folder / "input").rglob("*.png")]:
                Image.open(path).load()
            if promised.jobs:
                store = Store(folder / "user/queue.db")
                for job_id, status in promised.jobs.items():
                    found = store.get(job_id).status
                    assert status == "pending" or found == status, (status, found, loss)
                waiting += store.count(Status.PENDING, Status.RUNNING)
                store.close()
            shutil.rmtree(folder)
    assert count > 2 * MOMENTS and waiting > MOMENTS


def test_after_the_power_went_in_the_middle_the_jobs_that_wait_are_done(
    recording: Recording, tmp_path: Path
) -> None:
    rng = random.Random(2)
    disk, promised = next(
        (disk, promised)
        for disk, promised in moments(recording, rng)
        if list(promised.jobs.values()).count("pending") > 2
    )
    root = tmp_path / "disk"
    root.mkdir()
    disk.write(root, "pieces", rng)
    with served(root) as http:
        for job_id, status in promised.jobs.items():
            if status == "cancelled":
                assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"
                continue
            assert finished(http, job_id)["status"]["status_str"] == "success"
    assert [*(root / "output").rglob("*.part")] == []
    for path in (root / "output").rglob("*.png"):
        Image.open(path).load()


def test_the_log_was_written_back_on_the_way(recording: Recording) -> None:
    """Else the moments above would not be worth much."""
    written = [r for r in read_records(recording.file) if r.kind == "W" and r.path.endswith("queue.db")]
    assert len(written) > 500
