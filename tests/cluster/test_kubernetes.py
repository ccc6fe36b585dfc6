"""The files for Kubernetes, as far as they can be held to anything here."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from loraloom.cli.main import application
from loraloom.cluster.ray_node import SLOT

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples/kubernetes/raycluster.yaml"


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text("utf-8"))["spec"]


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_ray_has_the_version_that_is_pinned(spec: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned is not None and spec["rayVersion"] == pinned[1]
    assert f'cluster = ["ray=={pinned[1]}"]' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_every_worker_has_what_workers_are_counted_by(spec: dict[str, Any]) -> None:
    for group in spec["workerGroupSpecs"]:
        resources = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert resources == {SLOT: 1}
    assert "resources" not in spec["headGroupSpec"]["rayStartParams"]


def test_the_servers_options_are_options(spec: dict[str, Any]) -> None:
    script = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["args"][0]
    line = shlex.split(script[script.index("loraloom serve") :])
    command: Any = typer.main.get_command(application("serve"))
    known = {name for p in command.commands["serve"].params for name in p.opts}
    assert {word for word in line if word.startswith("--")} <= known


@pytest.mark.heavy
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_rays_options_are_options(spec: dict[str, Any]) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for group in groups(spec):
        assert all(f"--{name} " in said for name in group["rayStartParams"])
