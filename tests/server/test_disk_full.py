"""A disk without space: said as what it is, and over when there is space again."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import pytest
from PIL import Image
from tests.jobs.tiny_runner import prompt
from tests.server.running import RunningServer

resource = pytest.importorskip("resource")
if not hasattr(resource, "prlimit"):
    pytest.skip("limits of another process are changed on Linux", allow_module_level=True)


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (500, 500), os.urandom(750_000)).save(buffer, "PNG")
    return buffer.getvalue()


def test_everything_answers_507_or_503_and_goes_on_later(start_server: Callable[..., RunningServer]) -> None:
    server = start_server("--paused")
    pid = server.process.pid
    waiting = server.submit(prompt(value=3))
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        upload = server.http.post("/upload/image", files={"image": ("a.png", _picture())})
        assert (upload.status_code, upload.json()["type"]) == (507, "disk_full")
        assert int(upload.headers["retry-after"]) > 0
        saved = server.http.post("/userdata/a.json", content=b"x" * 200_000)
        assert saved.status_code == 507
        settings = server.http.post("/settings", json={"a": "x" * 200_000})
        assert settings.status_code == 507
        large = prompt(value=4, name="n" * 100)
        large["9"]["_meta"] = {"title": "t" * 200_000}  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue, reportOptionalSubscript]
        for path, body in (("/prompt", {"prompt": large}), ("/v1/jobs", {"workflow": large})):
            for _ in range(3):
                answer = server.http.post(path, json=body)
                assert answer.status_code in (503, 507), answer.text
                assert int(answer.headers["retry-after"]) > 0
        # A word more in the log may still find its place.
        assert server.http.post("/v1/queue/pause").status_code in (200, 503, 507)
        for path in ("/queue", "/history", "/v1/jobs", "/v1/queue", f"/v1/jobs/{waiting}"):
            assert server.http.get(path).status_code == 200
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert [*(server.folder / "input").rglob("*.part")] == []
    assert server.http.post("/v1/queue/resume").status_code == 200
    assert server.history(waiting)["status"]["status_str"] == "success"
    assert server.http.post("/upload/image", files={"image": ("a.png", _picture())}).status_code == 200


def test_a_job_that_finds_no_space_says_so(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    server.history(server.submit(prompt(value=1)))
    worker = server.http.get("/v1/queue").json()["worker"]["pid"]
    soft, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, hard))
    failed = server.history(server.submit(prompt(value=2)))
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (soft, hard))
    error = failed["status"]["messages"][-1][1]
    assert (error["exception_type"], error["node_id"]) == ("disk_full", "9")
    assert server.history(server.submit(prompt(value=2)))["status"]["status_str"] == "success"
