"""Names are printed as they are, whatever a terminal library makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.cli.main import exit_code_of

NAME = ":fire: [red]x[].safetensors"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "models/loras").mkdir(parents=True)
    module = "lora_unet_mid_block_attentions_0_proj_in"
    pair = {f"{module}.lora_up.weight": torch.ones(8, 2), f"{module}.lora_down.weight": torch.ones(2, 8)}
    save_file(pair, tmp_path / "models/loras" / NAME)
    return tmp_path / "models"


def test_model_files(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["models", "list", "loras", "--models", str(models)]) == 0
    assert NAME in capsys.readouterr().out


def test_a_loras_page(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["lora", "inspect", str(models / "loras" / NAME)]) == 0
    assert NAME in capsys.readouterr().out


def test_missing_files_titles_and_errors(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": ":boom:.safetensors"}},
        "2": {
            "class_type": "VAEDecode",
            "inputs": {"vae": ["1", 0], "samples": ["3", 0]},
            "_meta": {"title": "say :heart: [b]"},
        },
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": ":x:"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
    }
    path = tmp_path / "w:fire:.json"
    path.write_text(json.dumps(graph))
    assert exit_code_of(["validate", str(path), "--models", str(models)]) == 2
    said = capsys.readouterr().err
    for name in ("w:fire:.json", ":boom:.safetensors", "batch_size, :x:"):
        assert name in said
    assert exit_code_of(["validate", str(tmp_path / ":boom:.json")]) == 2
    assert ":boom:.json" in capsys.readouterr().err
