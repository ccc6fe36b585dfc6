"""Blocks of a network are compiled and give what they gave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from loraloom.errors import InputError
from loraloom.models.compiled import check_compiler, compile_blocks
from loraloom.models.computing import Computing
from loraloom.models.residency.memory import Memory

SOURCE = Path(__file__).parents[2] / "src"


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
@pytest.mark.timeout(1200)
def test_compiled_blocks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch.manual_seed(0)
    made = ResnetBlock2D(in_channels=8, groups=4, temb_channels=6).eval()
    network = nn.ModuleList([made, nn.Linear(2, 2)])
    given = torch.randn(2, 8, 6, 6), torch.randn(2, 6)
    with torch.inference_mode():
        expected = made(*given)
        assert compile_blocks(network) == 1
        assert (made(*given) - expected).abs().max() < 1e-5
    assert any((tmp_path / "loraloom" / "compiled").iterdir())


ANOTHER_PROCESS = """
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch._dynamo.utils import counters
from loraloom.models.compiled import compile_blocks
torch.manual_seed(0)
network = nn.ModuleList([ResnetBlock2D(in_channels=8, groups=4, temb_channels=6).eval()])
compile_blocks(network)
with torch.inference_mode():
    network[0](torch.randn(2, 8, 6, 6), torch.randn(2, 6))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_another_process_starts_with_what_was_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(SOURCE)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    said = [
        subprocess.run(
            [sys.executable, "-c", ANOTHER_PROCESS], env=environment, stdout=subprocess.PIPE, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert int(said[0][1]) > 0 and (int(said[1][0]) > 0, int(said[1][1])) == (True, 0), said
