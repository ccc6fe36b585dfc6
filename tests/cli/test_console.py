"""Names are printed as they are, whatever a terminal library makes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.cli.main import exit_code_of
from loraloom.visible import visible

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


EVIL = "a\x1b[2J\x1b]0;owned\x07\u202egnp.\x9b1A\u2066b"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_no_name_or_header_moves_the_cursor(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")  # so that no codes are our own
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    loras, workflow = models / "loras", tmp_path / f"{EVIL}.json"
    name = f"{EVIL}.safetensors"
    module = "lora_unet_mid_block_attentions_0_proj_in"
    pair = {f"{module}.lora_up.weight": torch.ones(8, 2), f"{module}.lora_down.weight": torch.ones(2, 8)}
    said = {"ss_output_name": EVIL, "modelspec.title": EVIL, "modelspec.trigger_phrase": EVIL}
    said |= {"modelspec.description": EVIL, "ss_tag_frequency": json.dumps({"x": {EVIL: 3}})}
    save_file(pair, loras / name, said)
    (loras / f"bad{name}").write_bytes(b"\x08\0\0\0\0\0\0\0" + EVIL.encode())
    graph = {
        EVIL: {"class_type": EVIL, "inputs": {EVIL: [EVIL, 0]}, "_meta": {"title": EVIL}},
        "9": {"class_type": "SaveImage", "inputs": {"images": [EVIL, 0], "filename_prefix": EVIL}},
    }
    workflow.write_text(json.dumps(graph))
    for arguments in (
        ["models", "list", "loras", "--models", str(models)],
        ["lora", "inspect", str(loras / name)],
        ["lora", "inspect", "--json", str(loras / name)],
        ["lora", "inspect", str(loras / f"bad{name}")],
        ["lora", "convert", str(loras / name), "--to", "native", "--out", str(tmp_path / name)],
        ["lora", "resize", str(loras / name), "--rank", "1", "--out", str(tmp_path / f"r{name}")],
        ["models", "path", EVIL],
        ["models", "convert", str(loras / name)],
        ["validate", str(workflow), "--models", str(models)],
        ["convert", str(workflow)],
        ["run", str(workflow), "--models", str(models), "--dry-run"],
        ["run", str(workflow), "--models", str(models), "--set", f"{EVIL}={EVIL}", "--json"],
        ["nodes", EVIL],
        ["train", str(tmp_path / f"{EVIL}.toml")],
        ["grid", str(workflow), "--models", str(models), "--axis", f"{EVIL}=1"],
    ):
        exit_code_of(arguments)
        told = capsys.readouterr()
        for text in (told.out, told.err):
            assert visible(text) == text, arguments
