"""`loraloom models quantize` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.cli.main import exit_code_of
from loraloom.weights.gguf_header import read_gguf
from loraloom.weights.header import read_header
from tests import tiny_models as tiny


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    return tiny.write_flux(tmp_path / "flux.safetensors")


def test_a_file_is_written_and_the_error_of_each_weight_said(
    flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = flux.with_name("int8.safetensors")
    assert exit_code_of(["models", "quantize", str(flux), "--to", "int8:convrot64", "--out", str(out)]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "double_blocks.0.img_attn.qkv.weight int8_tensorwise 384×128" in page
    assert "weights as int8:convrot64" in page and "largest error" in page
    assert out.stat().st_size < flux.stat().st_size * 0.7


def test_a_gguf_has_the_name_of_its_family(flux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = flux.with_name("flux.gguf")
    arguments = ["models", "quantize", str(flux), "--to", "gguf:Q8_0", "--out", str(out), "--json"]
    assert exit_code_of(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert {layer["format"] for layer in said["layers"]} == {"Q8_0"}
    assert read_gguf(out).fields["general.architecture"] == "flux"
    back = flux.with_name("back.safetensors")
    assert exit_code_of(["models", "quantize", str(out), "--to", "bf16", "--out", str(back)]) == 0
    shapes = [{name: info.shape for name, info in read_header(path).tensors.items()} for path in (flux, back)]
    assert shapes[0] == shapes[1]


def test_what_cannot_be_done_is_an_error(flux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = flux.with_name("out")
    assert exit_code_of(["models", "quantize", str(flux), "--to", "int5", "--out", str(out)]) == 2
    assert "no such storage format to write: 'int5'" in capsys.readouterr().err
    assert not out.exists()


def test_a_lora_is_not_quantised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "lora.safetensors", tmp_path / "out"
    save_file({f"diffusion_model.blocks.0.q.lora_{part}.weight": torch.ones(64, 64) for part in "AB"}, file)
    assert exit_code_of(["models", "quantize", str(file), "--to", "int8", "--out", str(out)]) == 2
    assert "LoRAs are not quantised" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
