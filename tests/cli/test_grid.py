from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraloom.cli.main import exit_code_of
from loraloom.demo.files import MODELS, WORKFLOW

GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0xFF8000},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "orange"}},
}

PACK = """
class Frame:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "frame"
    CATEGORY = "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "value": ("FLOAT", {"default": 0.0})}}
    def frame(self, image, value):
        print("a pack that prints")
        return (image * 0 + value,)
NODE_CLASS_MAPPINGS = {"Frame": Frame}
"""


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(GRAPH))
    return path


def _open(path: str) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def test_a_grid_is_every_combination_and_a_sheet(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["--axis", "EmptyImage.width=8,16", "--axis", "EmptyImage.height=8,24,32"]
    assert exit_code_of(["grid", str(graph), *axes, "--compat", "comfyui", "--strict-lora", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [_open(path).size for path in result["pictures"]] == [
        (width, height) for width in (8, 16) for height in (8, 24, 32)
    ]
    assert _open(result["sheet"]).size > (32, 64)


def test_a_value_that_cannot_be_is_said_before_anything_is_drawn(
    graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["grid", str(graph), "--axis", "EmptyImage.width=8,many"]) == 2
    assert "many" in capsys.readouterr().err
    assert not list(graph.parent.rglob("*.png"))


def test_a_grid_over_a_node_pack(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (graph.parent / "packs").mkdir()
    (graph.parent / "packs/frame.py").write_text(PACK)
    frame = {"class_type": "Frame", "inputs": {"image": ["1", 0], "value": 0.0}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "framed"}}
    graph.write_text(json.dumps({"1": GRAPH["1"], "3": frame, "2": save}))
    packs = ["--custom-nodes", str(graph.parent / "packs")]
    assert exit_code_of(["grid", str(graph), "--axis", "Frame.value=0,1", *packs, "--json"]) == 0
    captured = capsys.readouterr()
    pictures = json.loads(captured.out)["pictures"]
    assert [_open(path).getpixel((0, 0)) for path in pictures] == [(0, 0, 0), (255, 255, 255)]
    assert "a pack that prints" in captured.err


def test_every_picture_of_a_batch_is_on_the_sheet(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axis = ["--axis", "EmptyImage.batch_size=1,4"]
    assert exit_code_of(["grid", str(graph), *axis, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["pictures"]) == 5
    orange = sum(pixel == (255, 128, 0) for pixel in _open(result["sheet"]).get_flattened_data())
    assert orange == 5 * 64


def test_a_cell_shows_so_many_pictures_and_says_so(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["grid", str(graph), "--axis", "EmptyImage.batch_size=20"]) == 0
    assert "the sheet shows the first 16 of its 20 pictures" in capsys.readouterr().err


def test_pictures_that_share_a_model_are_drawn_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--set", "EmptyLatentImage.width=64", "--set", "EmptyLatentImage.height=64"]
    where = ["--models", str(MODELS), "--set", "KSampler.steps=1", "--dtype", "fp32", *small, "--json"]
    axes = ["--axis", "LoraLoader.strength_model=0,0.5,1", "--axis", "KSampler.seed=1,2"]
    found: dict[str, list[Image.Image]] = {}
    for batch, rows in (("off", []), ("4", [4, 4, 4, 4, 2, 2])):
        assert exit_code_of(["grid", str(WORKFLOW), *axes, *where, "--batch", batch]) == 0
        said = json.loads(capsys.readouterr().out)
        assert [one["rows"] for one in said["batches"]] == rows
        assert [one["picture"] for one in said["batches"]] == [*range(1, len(rows) + 1)]
        found[batch] = [_open(path) for path in said["pictures"]]
    for alone, together in zip(found["off"], found["4"], strict=True):
        assert np.abs(np.asarray(alone, int) - np.asarray(together, int)).max() <= 1


def test_a_number_of_rows_that_cannot_be_is_refused(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for batch in ("0", "many", "1000", "²"):
        axis = ["--axis", "EmptyImage.width=8,16", "--batch", batch]
        assert exit_code_of(["grid", str(graph), *axis]) == 2
        assert "expected auto, off, or a number" in capsys.readouterr().err
