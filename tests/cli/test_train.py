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


def settings_file(folder: Path, pictures: Path, more: str = "") -> Path:
    write_sd15(folder / "base.safetensors")
    path = folder / "settings.toml"
    path.write_text(
        f"""
name = "thing"
output = "run"
model.checkpoint = "base.safetensors"
adapter.rank = 2
run = {{ steps = 2, resolution = 32, bucket_step = 8, dtype = "fp32", device = "cpu" }}
validation.share = 0.5
data = [{{ folder = "{pictures.name}" }}]
{more}
""",
        "utf-8",
    )
    return path


def test_a_sweep_trains_every_combination_once(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = settings_file(tmp_path, pictures, 'sweep.values = { "adapter.rank" = [1, 2] }')
    assert exit_code_of(["train", str(path), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["values"] for run in runs] == [{"adapter.rank": 1}, {"adapter.rank": 2}]
    loras = [Path(run["lora"]) for run in runs]
    assert loras[0] == tmp_path / "run/rank-1/thing-rank-1.safetensors"
    assert all(path.is_file() and run["loss"] > 0 and run["validation"] > 0
               for path, run in zip(loras, runs, strict=True))  # fmt: skip
    assert [p.name for p in sorted((tmp_path / "run").iterdir())] == ["cache", "rank-1", "rank-2"]
    written = loras[0].stat().st_mtime_ns
    assert exit_code_of(["train", str(path), "--sweep", "adapter.rank=1,4"]) == 0
    said = capsys.readouterr().err
    assert "1 of 2 rank 1: done already" in said and loras[0].stat().st_mtime_ns == written
    assert (tmp_path / "run/rank-4/thing-rank-4.safetensors").is_file()
    heading, *rows = said.splitlines()[-4:-1]
    assert heading.split() == ["rank", "loss", "validation", "folder"]
    assert [row.split()[0] for row in rows] == ["1", "4"] and said.count("lowest") == 1


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = settings_file(tmp_path, pictures)
    asked = ["train", str(path), "--json", "--sweep", "adapter.targets=nothing_is_called_so,to_q"]
    assert exit_code_of(asked) == 1
    said = capsys.readouterr()
    runs = json.loads(said.out)["runs"]
    assert [run["status"] for run in runs] == ["failed", "done"] and runs[0]["error"]
    assert "1 of 2 runs failed" in said.err


@pytest.mark.parametrize(
    "more", [["--random", "2"], ["--sweep", "adapter.rnak=1,2"], ["--sweep", "adapter.rank"]]
)
def test_a_sweep_that_cannot_be_ends_with_2(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    path = settings_file(tmp_path, pictures)
    assert exit_code_of(["train", str(path), *more]) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
