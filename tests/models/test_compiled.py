"""Blocks of a network are compiled and give what they gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.compiled import check_compiler, compile_blocks
from loraloom.models.computing import Computing
from loraloom.models.residency.memory import Memory
from tests import tiny_models


def test_what_is_missing_to_compile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.cpp_builder as builder

    def nothing() -> str:
        raise RuntimeError("no working compiler")

    monkeypatch.setattr(builder, "get_cpp_compiler", nothing)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler, and there is none: no working compiler"):
        Memory("cpu", computing=Computing(compiled=True))
    with pytest.raises(InputError, match="needs the package triton on cuda"):
        check_compiler(torch.device("cuda"))


@pytest.mark.heavy
def test_compiled_blocks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model, _, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    module: Any = Memory("cpu", "fp32").resident_module(model)
    x, context = torch.randn(2, 4, 16, 16), torch.randn(2, 77, module.config.cross_attention_dim)

    def output() -> torch.Tensor:
        return module(x, torch.tensor([500.0, 500.0]), context, return_dict=False)[0]

    with torch.inference_mode():
        expected = output()
        assert compile_blocks(module) > 10
        assert (output() - expected).abs().max() < 1e-4 * expected.abs().max()
    assert any((tmp_path / "loraloom" / "compiled").iterdir())
