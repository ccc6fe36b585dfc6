"""The commands around a cluster, as far as they need none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from loraloom.cli import cluster_head
from loraloom.cli.main import exit_code_of
from loraloom.errors import InputError


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
