"""What users choose about computing: the same picture otherwise, or another one where that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loraloom.cli.main import exit_code_of
from loraloom.models.computing import USUAL, Computing
from loraloom.result import Run
from loraloom.session import Session
from tests.demo_models import write_demo_models

PAGE = Path(__file__).parent.parent / "examples/lora-tutorial.md"
SMALL = {"EmptyLatentImage.width": 64, "EmptyLatentImage.height": 64, "KSampler.steps": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_demo_models(root)
    return root


def drawn(models: Path, output: Path, computing: Computing, steps: int = 2) -> tuple[Run, int]:
    """A run, and the bytes of all weights afterwards."""
    with Session(models, output_dir=output, dtype="fp32", computing=computing) as session:
        result = session.run(PAGE, workflow=1, set=SMALL | {"KSampler.steps": steps})
        return result, session.memory.resident_bytes


def distance(one: Run, other: Run) -> int:
    """The largest difference of two pictures, of 255."""
    first, second = (np.asarray(result.images[0], np.int16) for result in (one, other))
    return int(np.abs(first - second).max())


def test_narrow_weights_give_the_same_picture_in_less_memory(models: Path, tmp_path: Path) -> None:
    usual, whole = drawn(models, tmp_path, USUAL)
    narrow, less = drawn(models, tmp_path, Computing(narrow_weights=True))
    assert distance(usual, narrow) <= 1
    assert less < 0.6 * whole  # the files are fp16


def test_another_kernel_gives_the_same_picture(models: Path, tmp_path: Path) -> None:
    usual, _ = drawn(models, tmp_path, USUAL)
    plain, _ = drawn(models, tmp_path, Computing(attention="math"))
    assert distance(usual, plain) <= 1


def test_steps_that_are_left_out_are_said(models: Path, tmp_path: Path) -> None:
    result, _ = drawn(models, tmp_path, Computing(fast=("steps",)), steps=6)
    (said,) = [warning for warning in result.warnings if "--fast" in warning]
    assert said.endswith("of 6 evaluations were left out")


def test_attention_that_is_not_there_is_an_error(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--models", str(models), "--output-dir", str(tmp_path), "--device", "cpu"]
    assert exit_code_of(["run", str(PAGE), "--workflow", "1", "--attention", "sage", *where]) == 2
    assert "there is no sage attention on cpu" in capsys.readouterr().err
