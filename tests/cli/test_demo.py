"""`loraloom demo`, with fewer steps than people see: what its pictures show is `tests/demo`'s."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraloom.cli import demo, demo_training
from loraloom.cli.display import Display
from loraloom.cli.main import exit_code_of
from tests.docs.desk import quick_workflow


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's workflow has few steps."""
    path = tmp_path / "quick.json"
    path.write_text(json.dumps(quick_workflow()), "utf-8")
    monkeypatch.setattr(demo, "WORKFLOW", path)


@pytest.mark.usefixtures("quick")
def test_the_demo_draws_with_and_without_the_lora_and_a_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "GRID_PROMPTS", ("a cat",))
    monkeypatch.setattr(demo, "GRID_STRENGTHS", ("0", "1"))
    assert exit_code_of(["demo", "a cat", "--seed", "3", "--output-dir", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    pictures: list[np.ndarray] = []
    for title, strength in (("with the LoRA", 1.0), ("without it", 0.0)):
        run = told["runs"][title]
        (output,) = run["outputs"]
        with Image.open(output["path"]) as picture:
            pictures.append(np.asarray(picture))
        assert [r["strength_model"] for r in run["loras"]] in ([strength], [])
    assert pictures[0].shape == (192, 192, 3)
    assert not np.array_equal(pictures[0], pictures[1])
    with Image.open(told["sheet"]) as sheet:
        assert sheet.width > 256


def test_an_unknown_lora_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["demo", "--lora", "nosuch"]) == 2
    assert "pixel_art" in capsys.readouterr().err


def test_the_demo_unpacks_into_a_folder_that_other_commands_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert exit_code_of(["demo", "--unpack", "here"]) == 0
    assert "pixel_art" in capsys.readouterr().out
    assert exit_code_of(["validate", "here/workflow.json", "--models", "here/models"]) == 0
    (tmp_path / "here/workflow.json").write_text("mine")
    assert exit_code_of(["demo", "--unpack", "here"]) == 2
    assert (tmp_path / "here/workflow.json").read_text() == "mine"


@pytest.mark.usefixtures("quick")
def test_the_demo_trains_a_lora_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "GRID_PROMPTS", ("a cat",))
    monkeypatch.setattr(demo, "GRID_STRENGTHS", ("0", "1"))
    monkeypatch.setattr(demo_training, "THINGS", ("a cat",))
    monkeypatch.setattr(demo_training, "SAMPLES", ("delft, a cat",))
    monkeypatch.setattr(demo_training, "BATCH", 1)
    monkeypatch.setattr(demo_training, "STEPS", 2)
    monkeypatch.setattr(demo_training, "SAMPLE_EVERY", 2)
    asked = ["demo", "a cat", "--train", "--seed", "3", "--output-dir", str(tmp_path), "--json"]
    assert exit_code_of(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lora"] == str(tmp_path / "models" / "loras" / "delft.safetensors")
    (receipt,) = told["runs"]["with the LoRA"]["loras"]
    assert receipt["complete"] and receipt["strength_model"] == 1.0
    assert len(list((tmp_path / "training" / "run" / "samples").glob("*.png"))) == 1
    assert (tmp_path / "training" / "pictures" / "a-cat.txt").read_text("utf-8") == "delft, a cat"
    assert Path(told["sheet"]).name.startswith("delft-strengths")


@pytest.mark.usefixtures("quick")
def test_a_training_that_was_stopped_draws_only_the_pictures_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_training, "THINGS", ("a cat", "a dog"))
    demo_training.write_lesson(tmp_path, "a cat", Image.new("RGB", (24, 24), "white"))
    there = (tmp_path / "a-cat.png").read_bytes()
    assert demo_training.draw_pictures(tmp_path, Display(quiet=True)) == 24
    assert (tmp_path / "a-cat.png").read_bytes() == there
    with Image.open(tmp_path / "a-dog.png") as drawn:
        assert drawn.size == (192, 192)


def test_train_and_lora_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["demo", "--train", "--lora", "ink"]) == 2
    assert "--train" in capsys.readouterr().err


def test_a_lesson_is_a_picture_and_a_caption_that_begins_with_the_word(tmp_path: Path) -> None:
    demo_training.write_lesson(tmp_path / "new", "a red rose", Image.new("RGB", (8, 8), "white"))
    assert (tmp_path / "new" / "a-red-rose.txt").read_text("utf-8") == "delft, a red rose"
    assert (tmp_path / "new" / "a-red-rose.png").is_file()
