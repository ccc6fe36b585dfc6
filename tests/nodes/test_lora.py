"""LoraLoader and LoraLoaderModelOnly at strength 0: the file is not opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.handles import DiffusionModel, TextEncoders
from loraloom.nodes.lora import load_lora, load_lora_model_only
from tests import tiny_models
from tests.nodes.runs import PlainRun

DAMAGED = "damaged.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    (tmp_path / "models/loras").mkdir(parents=True)
    (tmp_path / "models/loras" / DAMAGED).write_bytes(b"<html>not found</html>")
    return PlainRun(tmp_path)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[DiffusionModel, TextEncoders]:
    model, clip, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "models/checkpoints/tiny.safetensors"))
    assert clip is not None
    return model, clip


def _receipt(run: PlainRun) -> dict[str, object]:
    (receipt,) = run.notes("lora")
    assert isinstance(receipt, dict)
    return dict(receipt)


def test_both_strengths_0(run: PlainRun, parts: tuple[DiffusionModel, TextEncoders]) -> None:
    model, clip = parts
    assert load_lora(model, clip, DAMAGED, 0.0, 0.0, run=run) == (model, clip)
    receipt = _receipt(run)
    assert receipt["left_out"] == "both strengths are 0"
    assert (receipt["name"], receipt["strength_model"], receipt["strength_clip"]) == (DAMAGED, 0.0, 0.0)


def test_the_models_strength_0(run: PlainRun, parts: tuple[DiffusionModel, TextEncoders]) -> None:
    model, _ = parts
    assert load_lora_model_only(model, DAMAGED, 0.0, run=run) == model
    receipt = _receipt(run)
    assert receipt["left_out"] == "its strength is 0"
    assert receipt["strength_clip"] is None


@pytest.mark.parametrize("strengths", [(0.0, 1.0), (1.0, 0.0)])
def test_one_strength_opens_the_file(
    run: PlainRun, parts: tuple[DiffusionModel, TextEncoders], strengths: tuple[float, float]
) -> None:
    with pytest.raises(Exception, match="web page"):
        load_lora(*parts, DAMAGED, *strengths, run=run)
