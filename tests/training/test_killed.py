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

FEW = [3, 6, 11]
MANY = sorted(random.Random(30).sample(range(1, 60), 30))
# A server that has imported everything and computed nothing forks what is killed here. What is imported for a
# run alone is named: PEFT brings most of it along.
_PROCESSES: Any = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["loraloom.training.train", "peft"])


def _train(settings: Settings, step: Any, losses: Path) -> None:
    torch.set_num_threads(1)
    with losses.open("a") as file:

        def told(report: Any) -> None:
            file.write(f"{report.step} {report.loss.hex()}\n")
            file.flush()
            step.value = report.step

        train(settings, told)


def _losses(file: Path) -> set[tuple[str, ...]]:
    """(step, loss) of every step that was done, however often."""
    return {tuple(line.split()) for line in file.read_text().splitlines() if line.count(" ") == 1}


def _result(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.rglob("tiny.safetensors")))


@pytest.mark.parametrize(
    ("steps", "kills"),
    [(14, FEW), pytest.param(60, MANY, marks=[pytest.mark.heavy, pytest.mark.timeout(3000)])],
    ids=["few", "many"],
)
def test_killed_at_any_moment_it_ends_in_the_same_file(
    steps: int, kills: list[int], make_settings: MakeSettings, tmp_path: Path
) -> None:
    rng = random.Random(1)

    def run(output: Path, kill_at: int | None = None) -> int:
        """How it ended. kill_at: the step after which it is killed, a moment later."""
        step = _PROCESSES.Value("i", 0)
        told = output.with_suffix(".losses")
        arguments = (make_settings(steps=steps, output=output), step, told)
        process = _PROCESSES.Process(target=_train, args=arguments)
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
    for kill_at in kills:
        assert run(tmp_path / "parts", kill_at) in (0, -9)  # SIGKILL
        for path in (tmp_path / "parts").rglob("*.safetensors"):
            load_file(path)
    assert run(tmp_path / "parts") == 0
    one, other = _result(tmp_path / "whole"), _result(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    losses = _losses(tmp_path / "whole.losses")
    assert len(losses) == steps
    told = _losses(tmp_path / "parts.losses")  # a kill may come between a state and the line about its step
    assert told <= losses and len(losses - told) <= len(kills)
