"""How `loraloom serve` begins, and what it says when it cannot."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.server.editor import serve
from tests.server.running import ROOT, RunningServer

from loraloom.errors import InputError
from loraloom.server.run import listen


def refused(folder: Path, *options: str) -> str:
    """What the command says that ends at once, as it should."""
    done = subprocess.run(
        [sys.executable, "-m", "loraloom", "serve", "--port", "0", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_queue_file_that_cannot_be_used_is_named_and_can_be_set_aside(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    path = tmp_path / "user/queue.db"
    path.write_bytes(b"this is no database" * 500)
    said = refused(tmp_path)
    assert "is damaged" in said and "--new-queue" in said and "port" not in said
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE mail (text TEXT)")
    database.close()
    assert "another program" in refused(tmp_path)
    process, _ = serve(tmp_path, "--new-queue", "--no-frontend", "--start-paused")
    process.kill()
    process.wait()
    kept = [p for p in path.parent.iterdir() if p.name.startswith("queue.db.2")]
    assert len(kept) == 1
    assert b"mail" in kept[0].read_bytes()


def test_a_port_that_is_taken_is_said_to_be(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port} is in use" in refused(tmp_path, "--port", str(port))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 100])
def test_an_address_that_is_none_is_said_to_be(host: str) -> None:
    with pytest.raises(InputError, match="no address"):
        listen(host, 0)


def test_temporary_pictures_lie_in_the_user_folder(tmp_path: Path) -> None:
    process, _ = serve(tmp_path, "--no-frontend", "--start-paused")
    process.kill()
    process.wait()
    assert (tmp_path / "user/temp").is_dir()
    assert stat.S_IMODE((tmp_path / "user/temp").stat().st_mode) & 0o077 == 0


def test_a_pause_is_kept_over_a_restart_of_the_server(start_server: Callable[..., RunningServer]) -> None:
    first = start_server()
    assert first.http.post("/v1/queue/pause").json()["paused"] is True
    first.kill()
    second = start_server()
    assert second.http.get("/v1/queue").json()["paused"] is True
