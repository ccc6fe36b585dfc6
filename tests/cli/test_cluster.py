"""The commands around a cluster, as far as they need none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from loraloom.cli import cluster_head
from loraloom.cli.main import exit_code_of
from loraloom.cli.server_jobs import ServerJobs
from loraloom.errors import InputError
from loraloom.workflow.graph import JSON


def test_without_ray_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    absent: Any = lambda name, package=None: None if name == "ray" else find(name, package)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    monkeypatch.chdir(tmp_path)
    assert exit_code_of(["cluster", "worker", "10.0.0.5:6379"]) == 2
    assert exit_code_of(["serve", "--cluster", "auto", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert said.count("loraloom[cluster]") == 2


WATCH = """
import importlib.abc, os, sys
def note(text):
    with open(os.environ["WATCHED"], "a") as file:
        file.write(text + "\\n")
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            note("ray")
sys.meta_path.insert(0, Watch())
note(" ".join(sys.orig_argv))
"""


def test_a_server_of_one_machine_imports_nothing_of_ray(tmp_path: Path) -> None:
    """Nor do the processes that it starts, which all say that they are watched."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH)
    source = Path(__file__).parents[2] / "src"
    watched = {
        "WATCHED": str(tmp_path / "log"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "watch"), str(source)]),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "loraloom", "serve", "--port", "0", "--no-frontend", "--devices", "cpu"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, **watched},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        server = ServerJobs(next(line for line in process.stderr if "listens on" in line).split()[-1])
        picture: JSON = {
            "class_type": "EmptyImage",
            "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
        }
        save: JSON = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
        (job,) = server.ended([{"1": picture, "2": save}], threading.Event())
        assert job["status"] == "completed"
        assert server.ask("/v1/workers")["nodes"] == []
    finally:
        process.terminate()
        process.communicate(timeout=30)
    said = (tmp_path / "log").read_text().splitlines()
    assert any("loraloom serve" in line for line in said)
    assert any("loraloom.jobs.worker" in line for line in said)
    assert "ray" not in said


@pytest.mark.parametrize("text", ["10.0.0.5", "10.0.0.5:", ":6379", "h:x", "h:0", "h:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        cluster_head.checked_address(text)


def test_devices_are_named_once() -> None:
    assert cluster_head.device_list(None) is None
    assert cluster_head.device_list("none") == []
    assert cluster_head.device_list("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    for text in ("", "cuda:0,", "cuda:0,cuda:0"):
        with pytest.raises(InputError, match="--devices"):
            cluster_head.device_list(text)


def test_a_server_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["cluster", "status", "--server", "http://127.0.0.1:9"]) == 2
    assert "--server" in capsys.readouterr().err
