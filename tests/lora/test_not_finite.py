"""NaN and infinities in a file are found by their bits, as torch finds them by their values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.cli.main import exit_code_of
from loraloom.lora.file import read_lora
from loraloom.lora.not_finite import not_finite, say_not_finite
from tests.lora.test_rewriting import MODULE as SQUARE_MODULE
from tests.lora.test_rewriting import SQUARE

MODULE = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_every_value_of_a_small_type(dtype: torch.dtype, tmp_path: Path) -> None:
    bits = torch.arange(1 << (8 * dtype.itemsize), dtype=torch.int32)
    values = bits.to(torch.uint16 if dtype.itemsize == 2 else torch.uint8).view(dtype)
    save_file({f"{MODULE}.lora_up.weight": values.reshape(-1, 1)}, tmp_path / "a.safetensors")
    wrong = int((~torch.isfinite(values.float())).sum())
    assert not_finite(read_lora(tmp_path / "a.safetensors").header) == {f"{MODULE}.lora_up.weight": wrong}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_of_a_large_type_in_a_tensor_of_several_parts(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.full((1 << 20, 2), torch.finfo(dtype).max, dtype=dtype)
    values[0, 0], values[-1, -1], values[1 << 19, 0] = float("nan"), float("-inf"), float("inf")
    other = torch.tensor([torch.finfo(dtype).tiny, -0.0, 1.5], dtype=dtype)
    pair = {f"{MODULE}.lora_up.weight": values, f"{MODULE}.lora_down.weight": other, "ids": torch.arange(9)}
    save_file(pair, tmp_path / "a.safetensors")
    assert not_finite(read_lora(tmp_path / "a.safetensors").header) == {f"{MODULE}.lora_up.weight": 3}


def test_it_is_said_in_one_line() -> None:
    assert say_not_finite({"a": 1}) == "1 value is NaN or infinite, in 1 tensor: a"
    found = dict.fromkeys("abcde", 2)
    assert say_not_finite(found) == "10 values are NaN or infinite, in 5 tensors: a, b, c and 2 more"


def test_inspect_and_convert_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("loraloom.cli.lora_commands.base_components", lambda _: SQUARE)
    up = torch.ones(8, 2)
    up[3, 1], up[4, 0] = float("nan"), float("inf")
    file = tmp_path / "a.safetensors"
    save_file(
        {f"{SQUARE_MODULE}.lora_up.weight": up, f"{SQUARE_MODULE}.lora_down.weight": torch.ones(2, 8)}, file
    )
    said = f"2 values are NaN or infinite, in 1 tensor: {SQUARE_MODULE}.lora_up.weight"
    assert exit_code_of(["lora", "inspect", str(file)]) == 0
    assert " ".join(said.split()) in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert exit_code_of(["lora", "inspect", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["not_finite"] == {f"{SQUARE_MODULE}.lora_up.weight": 2}
    assert exit_code_of(["lora", "inspect", "--json", "--no-hashes", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["not_finite"] == {}
    out = tmp_path / "b.safetensors"
    convert = ["lora", "convert", str(file), "--base", "base", "--to", "native", "--out", str(out)]
    assert exit_code_of(convert) == 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert sum(not_finite(read_lora(out).header).values()) == 2
