"""`loraloom train` from the command line: both ways to ask, the result, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from loraloom.cli.main import exit_code_of
from tests.tiny_models import write_sd15


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (32, 32), (90 * number, 10, 10)).save(folder / f"{number}.png")
    return folder


def test_a_settings_file_is_enough(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sd15(tmp_path / "base.safetensors")
    (tmp_path / "settings.toml").write_text(
        f"""
name = "thing"
output = "run"
model.checkpoint = "base.safetensors"
adapter.rank = 2
run = {{ steps = 2, resolution = 32, bucket_step = 8, dtype = "fp32", device = "cpu" }}
validation.share = 0.5
[[data]]
folder = "{pictures.name}"
trigger = "thing"
""",
        "utf-8",
    )
    assert exit_code_of(["train", str(tmp_path / "settings.toml"), "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["status"] == "done" and result["steps"] == 2
    for name in ("lora", "diffusers", "best", "curve"):
        assert Path(result[name]).is_file()
    assert "1 pictures" in said.err and "validation" in said.err


def test_a_folder_and_a_base_are_enough(tmp_path: Path, pictures: Path) -> None:
    base = write_sd15(tmp_path / "base.safetensors")
    arguments = ["--data", str(pictures), "--base", str(base), "--output", str(tmp_path / "out")]
    code = exit_code_of(
        ["train", *arguments, "--trigger", "t", "--name", "n", "--steps", "1", "--resolution", "32"]
    )
    assert code == 0
    assert (tmp_path / "out" / "n" / "n.safetensors").is_file()


@pytest.mark.parametrize("arguments", [[], ["--data", "x"], ["a.toml", "--data", "x"], ["none.toml"]])
def test_what_cannot_be_used_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["train", *arguments]) == 2
    assert "error:" in capsys.readouterr().err


def test_the_log_has_a_line_for_every_step(tmp_path: Path, pictures: Path) -> None:
    base = write_sd15(tmp_path / "base.safetensors")
    arguments = ["--data", str(pictures), "--base", str(base), "--output", str(tmp_path / "out")]
    more = ["--steps", "2", "--resolution", "32", "--log", str(tmp_path / "logs" / "steps.jsonl")]
    assert exit_code_of(["train", *arguments, "--name", "n", *more]) == 0
    lines = [json.loads(line) for line in (tmp_path / "logs" / "steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"]) for line in lines] == [(1, 2), (2, 2)]
    assert all(line["loss"] > 0 for line in lines)
