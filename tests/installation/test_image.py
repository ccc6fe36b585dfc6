"""The Docker image's parts: what is copied is there, it has no rights, its health check tells the truth."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.installation.built import ROOT
from tests.server.running import RunningServer, start

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))


def copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
    return [name for line in lines for name in line.split()[:-1]]


@pytest.mark.parametrize("name", copied())
def test_what_is_copied_is_there_and_not_ignored(name: str) -> None:
    assert (ROOT / name).exists()
    let_in = [
        line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"
    ]
    assert any(fnmatch.fnmatch(name, pattern) for pattern in let_in)


def test_the_last_stage_runs_without_rights_and_is_watched() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER loraloom$", last, re.M)
    assert "HEALTHCHECK" in last and 'VOLUME ["/models", "/data"]' in last


def test_every_argument_of_compose_is_one_of_the_image() -> None:
    known = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
    for service in COMPOSE["services"].values():
        assert set(service["build"]["args"]) <= known
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
        assert {volume.rpartition(":")[2] for volume in service["volumes"]} == {"/models", "/data"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start(tmp_path_factory.mktemp("image"))
    yield running
    running.end()


def check(url: str) -> tuple[int, str]:
    script = [sys.executable, str(ROOT / "docker" / "healthcheck.py"), url]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout.strip()


def test_a_server_that_works_is_healthy(server: RunningServer) -> None:
    assert check(server.url) == (0, "healthy")


def test_one_that_does_not_answer_is_not(tmp_path: Path) -> None:
    running = start(tmp_path)
    running.end()
    code, said = check(running.url)
    assert code == 1 and "does not answer" in said
