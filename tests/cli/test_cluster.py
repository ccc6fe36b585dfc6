"""The commands around a cluster, as far as they need none."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loraloom.cli import cluster_head
from loraloom.cli.doctor.packages import install
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
    assert said.count(install("cluster")) == 2


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


@pytest.mark.parametrize("option", [["--cluster-address", "10.0.0.5"], ["--cluster-most", "2"]])
def test_what_is_said_of_a_cluster_that_was_not_asked_for_is_not_overlooked(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code_of(["serve", "--port", "0", *option]) == 2
    assert "add --cluster auto" in capsys.readouterr().err


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


NO_HTTP = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"
"""What Ray's own port says to whoever asks in HTTP."""


def request(connection: socket.socket) -> bytes:
    """A whole HTTP request; its body may come in a packet of its own."""
    found = b""
    while more := connection.recv(1 << 16):
        found += more
        head, _, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if b"\r\n\r\n" in found and len(body) >= int(length[1] if length else 0):
            break
    return found


@contextmanager
def answering(*answers: bytes) -> Generator[tuple[str, list[bytes]]]:
    """A port that gives every connection the next of these answers, and what it was asked."""
    asked: list[bytes] = []

    def answer() -> None:
        for text in answers:
            connection, _ = listener.accept()
            with connection:
                asked.append(request(connection))
                connection.sendall(text)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        thread.join(20)


BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"


@pytest.mark.parametrize("answer", [NO_HTTP, BUSY, b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"])
def test_a_port_that_is_no_servers_is_named(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(answer) as (url, _):
        assert exit_code_of(["cluster", "status", "--server", url]) == 2
    said = capsys.readouterr().err
    assert url in said and "does not answer" in said


@pytest.mark.parametrize("url", ["127.0.0.1:8188", "ftp://x", "http://h:port", "http://[::1"])
def test_what_is_no_address_of_a_server_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["cluster", "status", "--server", url]) == 2
    assert "http://HOST:PORT" in capsys.readouterr().err


def test_a_job_whose_acknowledgement_is_lost_is_queued_once() -> None:
    """The second time the server knows its id."""
    refused = b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}"
    body = b'{"id": "x", "status": "completed", "outputs": []}'
    done = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering(b"", refused, done) as (url, asked):
        (job,) = ServerJobs(url).ended([{}], threading.Event())
    assert job["status"] == "completed"
    sent = [json.loads(text.partition(b"\r\n\r\n")[2] or b"{}").get("id") for text in asked[:2]]
    assert sent[0] and sent[0] == sent[1]
    assert f"/v1/jobs/{sent[0]} ".encode() in asked[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--devices", "none"], "--devices none"),
        (["--devices", "cuda:x"], "--devices cuda:x"),
        (["--devices", "cuda:0,cpu"], "--devices cuda:0,cpu"),
        (["--object-store", "1M"], "76M"),
        (["--devices", "cpu", "--cache", "file"], "file"),
    ],
)
def test_a_node_is_not_started_with_what_cannot_be(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loraloom.cli.cluster.require_ray", lambda: None)  # it is not reached
    Path("file").write_text("")
    assert exit_code_of(["cluster", "worker", "127.0.0.1:9", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_grid_on_a_server_that_is_not_there_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.json").write_text('{"1": {"class_type": "EmptyImage", "inputs": {"color": 0}}}')
    begun = time.monotonic()
    asked = ["grid", str(tmp_path / "w.json"), "--axis", "1.color=0,1", "--server", "http://127.0.0.1:9"]
    assert exit_code_of(asked) == 2
    assert "is the server running" in capsys.readouterr().err
    assert time.monotonic() - begun < 60
