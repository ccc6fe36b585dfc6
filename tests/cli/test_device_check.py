"""Devices that are not there: what a dry run and the server say before anything is loaded or listened to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loraloom.cli.device_check import check_devices
from loraloom.cli.main import exit_code_of
from loraloom.demo.files import MODELS, WORKFLOW
from loraloom.errors import InputError

SRC = Path(__file__).parents[2] / "src"
DRY = ["run", str(WORKFLOW), "--models", str(MODELS), "--dry-run"]


@pytest.fixture(autouse=True)
def child_of_this_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SRC))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda:99"], "no usable CUDA device"),
        (["--device", "gpu"], "no device is called 'gpu'"),
        (["--device", "cpu", "--dtype", "fp16"], "fp16 arithmetic is not offered on the CPU"),
    ],
)
def test_a_dry_run_refuses_what_this_machine_cannot_do(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of([*DRY, *options]) == 2
    told = capsys.readouterr()
    assert said in " ".join(told.err.split()) and "ready" not in told.err


def test_what_every_machine_can_do_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", os.devnull)
    check_devices(["auto", "cpu"], "bf16")
    with pytest.raises(OSError):
        check_devices(["cpu", "cuda"])


@pytest.mark.parametrize("options", [("--device", "cuda:99"), ("--devices", "cpu,cuda:99")])
def test_the_server_ends_before_it_listens(options: tuple[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loraloom", "serve", "--port", "0", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    assert "no usable CUDA device" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and "listens" not in done.stderr
    assert not (tmp_path / "user").exists()


def test_a_torch_that_cannot_be_imported_is_no_fault_of_the_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so is missing')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(SRC)]))
    with pytest.raises(Exception, match="libcudart.so is missing.*loraloom doctor") as error:
        check_devices(["cuda"])
    assert not isinstance(error.value, InputError)
