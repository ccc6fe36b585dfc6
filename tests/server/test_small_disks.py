"""Every folder of `loraloom serve` on a small disk of its own that fills up, one after another."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from PIL import Image
from tests.server.editor import serve

FOLDERS = ("output", "input", "user", "user/temp")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose folders are disks of 4 MB each."""
    root = tmp_path_factory.mktemp("disks")
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("disks are mounted by root, on Linux")
    mounted: list[Path] = []
    try:
        for name in FOLDERS:
            (root / name).mkdir()
            command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root / name)]
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("nothing can be mounted here")
            mounted.append(root / name)
        (root / "models").mkdir()
        yield root
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="module")
def http(disks: Path) -> Iterator[httpx.Client]:
    process, url = serve(disks, "--no-frontend")
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
    process.kill()
    process.wait()


@contextmanager
def full(folder: Path) -> Generator[None]:
    """The folder's disk without a free byte."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(4096))
        except OSError:
            pass
    yield
    ballast.unlink()


def job(http: httpx.Client, kind: str, color: int) -> dict[str, Any]:
    """A job's entry in the history, once it has ended."""
    shape = {"width": 64, "height": 64, "batch_size": 1, "color": color}
    saved = {"images": ["1", 0]} | ({"filename_prefix": "x"} if kind == "SaveImage" else {})
    prompt = {"1": {"class_type": "EmptyImage", "inputs": shape}, "2": {"class_type": kind, "inputs": saved}}
    answer = http.post("/prompt", json={"prompt": prompt})
    assert answer.status_code == 200, answer.text
    job_id = answer.json()["prompt_id"]
    until = time.monotonic() + 120
    while not (found := http.get(f"/history/{job_id}").json()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return cast("dict[str, Any]", found[job_id])


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(buffer, "PNG")
    return buffer.getvalue()


def whole(folder: Path) -> bool:
    """Whether nothing lies there half-written."""
    for path in folder.rglob("*.png"):
        Image.open(path).load()
    return [*folder.rglob("*.part")] == []


@pytest.mark.parametrize(("folder", "kind"), [("output", "SaveImage"), ("user/temp", "PreviewImage")])
def test_pictures_find_no_space(http: httpx.Client, disks: Path, folder: str, kind: str) -> None:
    assert job(http, kind, 1)["status"]["status_str"] == "success"
    with full(disks / folder):
        for color in (2, 3):
            entry = job(http, kind, color)
            error = entry["status"]["messages"][-1][1]
            assert (error["exception_type"], error["node_id"]) == ("disk_full", "2")
            assert "free some space" in error["exception_message"]
        assert whole(disks / folder)
    assert job(http, kind, 2)["status"]["status_str"] == "success"
    assert whole(disks / folder)


def test_uploads_find_no_space(http: httpx.Client, disks: Path) -> None:
    with full(disks / "input"):
        for route in ("/upload/image", "/upload/mask"):
            answer = http.post(route, files={"image": ("a.png", picture())})
            assert answer.status_code in ((507,) if route == "/upload/image" else (507, 400)), answer.text
        assert whole(disks / "input") and not [*(disks / "input").rglob("*.png")]
    assert http.post("/upload/image", files={"image": ("a.png", picture())}).status_code == 200
    assert whole(disks / "input")


def test_the_queue_finds_no_space(http: httpx.Client, disks: Path) -> None:
    done = job(http, "SaveImage", 10)
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 5}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    large = {**prompt, "1": {**prompt["1"], "_meta": {"title": "t" * 500_000}}}
    taken: list[str] = []
    with full(disks / "user"):
        for body in (large, large, prompt, prompt):
            answer = http.post("/prompt", json={"prompt": body})
            assert answer.status_code in (200, 503, 507), answer.text
            if answer.status_code == 200:  # SQLite still had some room of its own
                taken.append(answer.json()["prompt_id"])
            else:
                assert int(answer.headers["retry-after"]) > 0
        for path, content in (
            ("/userdata/a.json", b"x" * 9000),
            ("/settings", b'{"a": "' + b"x" * 9000 + b'"}'),
        ):
            assert http.post(path, content=content).status_code == 507
        for path in ("/queue", "/history", "/v1/jobs", "/v1/queue", "/object_info/SaveImage"):
            assert http.get(path).status_code == 200
        assert whole(disks / "user")
    entry = job(http, "SaveImage", 11)
    assert entry["status"]["status_str"] == "success"
    history = http.get("/history").json()
    assert done["prompt"][1] in history
    for job_id in taken:
        assert history[job_id]["status"]["status_str"] == "success"
    assert http.post("/userdata/a.json", content=b"x" * 9000).status_code == 200
    with sqlite3.connect(disks / "user/queue.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
