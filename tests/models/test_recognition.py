"""Which family a file belongs to, and what is said of files that belong to none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loraloom.errors import ModelFileError
from loraloom.models import recognition
from loraloom.models.recognition import families, looks_like, recognise
from loraloom.weights.header import read_header
from tests import tiny_models as tiny


@pytest.mark.parametrize(
    ("write", "family", "prefix"),
    [
        (tiny.write_sd15, "sd15", "model.diffusion_model."),
        (tiny.write_sd20, "sd20", "model.diffusion_model."),
        (tiny.write_sdxl, "sdxl", "model.diffusion_model."),
        (tiny.write_refiner, "sdxl_refiner", "model.diffusion_model."),
        (tiny.write_flux, "flux", ""),
    ],
)
def test_each_family_is_recognised(tmp_path: Path, write: tiny.Writer, family: str, prefix: str) -> None:
    found = recognise(read_header(write(tmp_path / "m.safetensors")))
    assert (found.family.name, found.prefix) == (family, prefix)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_family_with_more_marks_is_the_more_specific_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """A new family that is another one and more needs no change to that one's file."""
    known = families()
    flux = next(family for family in known if family.name == "flux")
    kin = replace(flux, name="kin", title="Kin", marks=(*flux.marks, "more.weight"))
    monkeypatch.setattr(recognition, "families", lambda: (kin, *known))
    shapes = tiny.flux_shapes(width=64, double=1, single=1, context=64, pooled=64)
    for extra, name in (({}, "flux"), ({"more.weight": (1,)}, "kin")):
        file = tiny.write(tmp_path / f"{name}.safetensors", tiny.prefixed(prefix, {**shapes, **extra}))
        assert recognise(read_header(file)).family.name == name


def test_a_file_of_two_families_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = families()
    flux = next(family for family in known if family.name == "flux")
    kin = replace(flux, name="kin", title="Kin", marks=("img_in.weight", "more.weight"))
    monkeypatch.setattr(recognition, "families", lambda: (kin, *known))
    shapes = tiny.flux_shapes(width=64, double=1, single=1, context=64, pooled=64)
    file = tiny.write(tmp_path / "both.safetensors", {**shapes, "more.weight": (1,)})
    with pytest.raises(
        ModelFileError, match=r"those of Kin and Flux\.1 alike.*take the file that its author"
    ):
        recognise(read_header(file))


def test_real_widths_belong_to_one_family_each() -> None:
    real = {
        "sd15": tiny.unet_shapes(width=320, levels=(1, 2, 4, 4), depths=(1, 1, 1, 0), context=768, resnets=2),
        "sd20": tiny.unet_shapes(
            width=320, levels=(1, 2, 4, 4), depths=(1, 1, 1, 0), context=1024, resnets=2, linear=True
        ),
        "sdxl": tiny.unet_shapes(
            width=320,
            levels=(1, 2, 4),
            depths=(0, 2, 10),
            middle=10,
            context=2048,
            label=2816,
            linear=True,
            resnets=2,
        ),
        "sdxl_refiner": tiny.unet_shapes(
            width=384,
            levels=(1, 2, 4, 4),
            depths=(0, 4, 4, 0),
            middle=4,
            context=1280,
            label=2560,
            linear=True,
            resnets=2,
        ),
        "flux": tiny.flux_shapes(width=3072, double=19, single=38, context=4096, pooled=768),
    }
    for name, shapes in real.items():
        assert [family.name for family in families() if family.matches(shapes)] == [name]


LOOKS: dict[str, tuple[tiny.Shapes, str]] = {
    "lora": ({"lora_unet_a.lora_down.weight": (4, 8), "lora_unet_a.lora_up.weight": (8, 4)}, "LoRA"),
    "vae": (tiny.autoencoder_shapes(), "VAE"),
    "clip": ({"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}, "CLIP"),
    "t5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)}, "T5"),
    "embedding": ({"emb_params": (2, 768)}, "embedding:NAME"),
    "controlnet": ({"control_model.input_hint_block.0.weight": (4, 4)}, "ControlNet"),
    "sd3": ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4, 4)}, "Diffusion 3"),
    "nothing known": ({"linear.weight": (4, 4)}, "linear.weight"),
}


@pytest.mark.parametrize(("shapes", "words"), LOOKS.values(), ids=LOOKS)
def test_says_what_a_file_looks_like(tmp_path: Path, shapes: tiny.Shapes, words: str) -> None:
    header = read_header(tiny.write(tmp_path / "m.safetensors", shapes, torch.float16))
    assert words in looks_like(header)
    with pytest.raises(ModelFileError, match=r"no diffusion model.*Known families: .*Flux\.1"):
        recognise(header)


def test_recognising_never_imports_torch() -> None:
    code = "import sys, loraloom.models.recognition as r; r.families(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
