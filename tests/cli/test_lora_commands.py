"""`loraloom lora` as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraloom.cli.main import exit_code_of
from loraloom.lora.component import Component

UP = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
DOWN = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"


@pytest.fixture
def lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "style.safetensors"
    tensors = {UP: torch.randn(8, 4), DOWN: torch.randn(4, 8)}
    save_file(tensors, path, {"modelspec.trigger_phrase": "sks", "ss_base_model_version": "sd_v1"})
    return path


def test_inspect_shows_a_page(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["lora", "inspect", str(lora)]) == 0
    page = capsys.readouterr().out
    for text in ("style.safetensors", "Stable Diffusion 1.5", "LoRA", "1 of the model", "sks", "autov3"):
        assert text in page
    assert "autov1" not in page, "a file of less than a megabyte has none"


def test_inspect_says_how_a_file_fits_a_base(
    lora: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("flux", {"img_in.weight": (8, 8)}, {})
    monkeypatch.setattr("loraloom.cli.lora_commands.base_components", lambda _: {"model": component})

    def page() -> str:
        assert exit_code_of(["lora", "inspect", str(lora), "--base", "flux.safetensors"]) == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    said = "nothing of this LoRA, which is for Stable Diffusion 1.5, has a place here"
    assert f"Flux.1: {said} 1 without a place: {UP.removesuffix('.lora_up.weight')}" in page()
    pair = {UP: torch.randn(8, 4), DOWN: torch.randn(4, 8), "what.is.this": torch.ones(1)}
    other = {f"diffusion_model.img_in.lora_{side}.weight": torch.ones(8, 8) for side in "AB"}
    save_file(pair | other, lora)
    assert "Flux.1: model 1/2 modules placed" in page()
    assert "1 tensors of no known kind: what.is.this" in page()


def test_inspect_speaks_json(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = lora.with_name("half.safetensors")
    alpha = {UP.replace("lora_up.weight", "alpha"): torch.tensor(2.0)}
    save_file(
        {UP: torch.ones(8, 4).half(), DOWN: torch.ones(4, 8).half(), **alpha},
        half,
        {"ss_base_model_version": "sd_v1"},
    )
    assert exit_code_of(["lora", "inspect", "--json", str(lora), str(half)]) == 0
    pages = json.loads(capsys.readouterr().out)
    assert [page["base"] for page in pages] == ["sd15", "sd15"]
    assert [page["algorithms"] for page in pages] == [{"LoRA": 1}, {"LoRA": 1}]
    assert [page["dtypes"] for page in pages] == [{"fp32": 2}, {"fp16": 2}]
    assert pages[0]["ranks"] == {"4": 1}
    assert pages[0]["triggers"] == ["sks"]
    assert len(pages[0]["hashes"]["autov3"]) == 12


def test_inspect_says_what_a_file_is_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.safetensors").write_text("<html>")
    assert exit_code_of(["lora", "inspect", str(tmp_path / "page.safetensors")]) == 2
    assert "web page" in capsys.readouterr().err


def test_one_bad_file_does_not_hide_the_others(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"")
    assert exit_code_of(["lora", "inspect", "--json", str(tmp_path / "bad.safetensors"), str(lora)]) == 2
    bad, good = json.loads(capsys.readouterr().out)
    assert "empty" in bad["error"]
    assert good["base"] == "sd15"


def test_inspect_never_imports_torch(lora: Path) -> None:
    code = (
        "import sys\nfrom loraloom.cli.main import exit_code_of\n"
        f"code = exit_code_of(['lora', 'inspect', '--json', {str(lora)!r}])\n"
        "sys.exit(code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_resize_writes_a_smaller_file(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.safetensors"
    assert exit_code_of(["lora", "resize", str(lora), "--out", str(out), "--rank", "2"]) == 0
    assert load_file(out)[UP].shape == (8, 2)
    assert "kept" in capsys.readouterr().err
    assert exit_code_of(["lora", "resize", str(lora), "--out", str(out)]) == 2


def test_commands_that_need_a_base_say_so(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.safetensors")
    assert exit_code_of(["lora", "merge", str(lora), str(lora), "--out", out]) == 2
    assert exit_code_of(["lora", "convert", str(lora), "--out", out]) == 2
    assert capsys.readouterr().err.count("--base") == 2
