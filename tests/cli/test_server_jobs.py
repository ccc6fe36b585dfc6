"""Work that a server's queue does for the command line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from loraloom.cli.main import exit_code_of
from loraloom.cli.server_jobs import ServerJobs
from loraloom.workflow.graph import JSON
from tests.server.editor import serve

WORKFLOW: dict[str, JSON] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "cell"}},
}


@pytest.fixture
def server(tmp_path: Path) -> Generator[str]:
    with serving(tmp_path, "cpu") as url:
        yield url


@contextmanager
def serving(folder: Path, devices: str, *options: str) -> Generator[str]:
    """The address of a server that runs in `folder`, and takes models from `folder/models`."""
    process, url = serve(folder, "--no-frontend", "--devices", devices, *options)
    try:
        yield url
    finally:
        process.terminate()
        process.wait(30)


def test_a_grid_is_drawn_by_a_servers_workers(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("w.json").write_text(json.dumps(WORKFLOW))
    asked = ["grid", "w.json", "--axis", "1.color=0,255,65280", "--server", server]
    assert exit_code_of([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["pictures"]) == 3 and len([*(tmp_path / "output").glob("cell_*.png")]) == 3
    with Image.open(said["sheet"]) as sheet:
        colours = {c for _, c in sheet.convert("RGB").getcolors(1 << 20) or ()}
        assert {(0, 0, 0), (0, 0, 255), (0, 255, 0)} <= colours
    Path("w.json").write_text(json.dumps({"1": WORKFLOW["1"]}))
    assert exit_code_of(asked) == 2
    assert "refuses" in capsys.readouterr().err


def test_a_worker_runs_on_every_device(tmp_path: Path) -> None:
    """Two names of the processor stand for two GPUs."""
    with serving(tmp_path, "cpu,cpu:0") as url:
        server = ServerJobs(url)
        names = [worker["name"] for worker in server.ask("/v1/workers")["workers"]]
        assert len({*names}) == 2
        until, idle = time.monotonic() + 100, {*names}
        while idle:  # the one that is ready first may take all of the first jobs
            assert time.monotonic() < until, idle
            jobs = [*server.ended([WORKFLOW] * 12, threading.Event())]
            assert {job["status"] for job in jobs} == {"completed"}
            idle = {w["name"] for w in server.ask("/v1/workers")["workers"] if not w["per_minute"]}
