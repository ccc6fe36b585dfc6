"""ComfyUI-GGUF's loaders: its names, on GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.errors import ModelFileError
from loraloom.models.handles import DiffusionModel, TextEncoders
from loraloom.nodes import gguf_loaders as loaders
from loraloom.weights.quantise import quantise_file
from tests import tiny_models as tiny
from tests.nodes.runs import PlainRun
from tests.weights.gguf_writer import write_gguf


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    plain = tiny.write_flux(tmp_path / "flux.safetensors")
    model = tmp_path / "models/unet/flux-Q8_0.gguf"
    quantise_file(plain, "gguf:Q8_0", model, architecture="flux")
    folder = tmp_path / "models/text_encoders"
    tiny.write_clip_l(folder / "clip_l.safetensors")
    tiny.write_t5(folder / "t5.safetensors")
    return PlainRun(tmp_path)


def test_a_diffusion_model_stays_quantised(run: PlainRun) -> None:
    for found in (
        loaders.load_gguf_model("flux-Q8_0.gguf", run=run),
        loaders.load_gguf_model_advanced("flux-Q8_0.gguf", "float16", run=run),
    ):
        assert isinstance(found, DiffusionModel) and found.family.name == "flux"
        assert found.weights.format("double_blocks.0.img_attn.qkv.weight") == "Q8_0"


def test_text_encoders_open_by_what_they_are(run: PlainRun, tmp_path: Path) -> None:
    found = loaders.load_gguf_dual_clip("t5.safetensors", "clip_l.safetensors", "flux", run=run)
    assert isinstance(found, TextEncoders) and {part.role for part in found.parts} == {"clip_l", "t5xxl"}
    assert isinstance(loaders.load_gguf_clip("clip_l.safetensors", "sd3", run=run), TextEncoders)
    write_gguf(tmp_path / "models/text_encoders/empty.gguf", {}, general__architecture="t5encoder")
    with pytest.raises(ModelFileError, match=r"empty\.gguf: no text encoder that is known here"):
        loaders.load_gguf_clip("empty.gguf", "sd3", run=run)
