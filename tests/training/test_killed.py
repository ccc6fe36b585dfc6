"""A training that is killed again and again, at any moment, ends in the very file of one that is not."""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from loraloom.training.settings import Settings
from loraloom.training.train import train
from tests.training.conftest import MakeSettings

if sys.platform != "linux":
    pytest.skip("processes are forked and killed on Linux", allow_module_level=True)

STEPS = 14
# A server that has imported everything and computed nothing forks what is killed here.
_PROCESSES: Any = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["loraloom.training.train"])


def _train(settings: Settings, step: Any) -> None:
    torch.set_num_threads(1)

    def told(report: Any) -> None:
        step.value = report.step

    train(settings, told)


def _result(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.rglob("tiny.safetensors")))


def test_killed_at_any_moment_it_ends_in_the_same_file(make_settings: MakeSettings, tmp_path: Path) -> None:
    rng = random.Random(1)

    def run(output: Path, kill_at: int | None = None) -> int:
        """How it ended. kill_at: the step after which it is killed, a moment later."""
        step = _PROCESSES.Value("i", 0)
        process = _PROCESSES.Process(target=_train, args=(make_settings(steps=STEPS, output=output), step))
        process.start()
        while process.is_alive() and (kill_at is None or step.value < kill_at):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        if kill_at is not None:
            process.kill()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    assert run(tmp_path / "whole") == 0
    for kill_at in (3, 6, 11):
        assert run(tmp_path / "parts", kill_at) in (0, -9)  # SIGKILL
        for path in (tmp_path / "parts").rglob("*.safetensors"):
            load_file(path)
    assert run(tmp_path / "parts") == 0
    one, other = _result(tmp_path / "whole"), _result(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
