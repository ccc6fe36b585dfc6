"""Text encoders from quantised files, their token tables too, against ComfyUI's conditionings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests import narrow_models as narrow
from tests.narrow_quantised import write_quantised
from torch import Tensor

from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt

FIGURES = Path(__file__).parents[2] / "data" / "storage" / "encoders.npz"
PROMPTS = ("a red fox in the snow", "two cats")


def figure(name: str) -> Tensor:
    with np.load(FIGURES) as figures:
        return torch.from_numpy(figures[name])


def distance(found: Tensor, wanted: Tensor) -> float:
    found = found[..., : wanted.shape[-1]].reshape(wanted.shape)
    return float((found - wanted).norm() / wanted.norm())


def encoded(path: Path, kind: str, prompt: str) -> Tensor:
    memory, clip = Memory("cpu", "fp32"), open_text_encoders((path,), kind)
    return encode_prompt(memory, clip, prompt, ModelFolders(()))[0][0].context


def test_fp8_in_some_layers_and_the_token_table(tmp_path: Path) -> None:
    weights = narrow.language_model("fam.qwen3_4b", 36)
    chosen = ("layers.1.", "layers.3.", "mlp.", "embed_tokens")
    path = write_quantised(tmp_path / "qwen_3_4b.safetensors", weights, chosen, "fp8")
    for index, prompt in enumerate(PROMPTS):
        wanted = figure(f"qwen_3_4b_fp8_mixed|cond|{index}")
        assert distance(encoded(path, "lumina2", prompt), wanted) < 1e-5


@pytest.mark.parametrize("index", [0, 1])
def test_int8_in_all_layers_and_the_token_table(tmp_path: Path, index: int) -> None:
    """Rounding inputs 252 times makes noise of its own: 2 % between two runs that differ by 1e-8."""
    weights = narrow.qwen3vl("fam.qwen3vl_8b")
    chosen = ("language_model.layers.", "embed_tokens")
    path = write_quantised(tmp_path / "qwen3vl_8b.safetensors", weights, chosen, "int8", "convrot64")
    plain, theirs = (figure(f"qwen3vl_8b{kind}|cond|{index}") for kind in ("", "_int8_convrot"))
    found = encoded(path, "qwen_image", PROMPTS[index])
    assert distance(found, theirs) < 0.03
    assert distance(found, plain) < 1.2 * distance(theirs, plain)
