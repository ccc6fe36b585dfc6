"""The loaders of text encoders: `type` and files together say how they are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.errors import ModelFileError
from loraloom.models.handles import TextEncoders
from loraloom.nodes import loaders
from tests import narrow_models as narrow
from tests import tiny_models as tiny
from tests.nodes.runs import PlainRun


def published(name: str) -> tiny.Shapes:
    """Names and a few shapes of published sizes, with a single layer and no values to speak of."""
    width = {"06b": 1024, "2b": 2048, "4b": 2560, "8b": 4096}[name]
    made = narrow.language_model("", 1, vocabulary=8, width=width, inner=2)
    return {key: shape for key, (shape, _, _) in made.known.items()}


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    folder = tmp_path / "models/text_encoders"
    tiny.write_clip_l(folder / "clip_l.safetensors")
    tiny.write(folder / "clip_g.safetensors", tiny.open_clip_shapes())
    tiny.write_t5(folder / "t5xxl.safetensors")
    for name in ("06b", "2b", "4b", "8b"):
        tiny.write(folder / f"qwen_3_{name}.safetensors", published(name))
    return PlainRun(tmp_path)


def file(name: str) -> str:
    return f"{name}.safetensors"


@pytest.mark.parametrize(
    ("name", "kind", "recipe"),
    [
        ("clip_l", "stable_diffusion", "sd15"),
        ("clip_l", "wan", "sd15"),
        ("clip_l", "sd3", "sd3"),
        ("clip_g", "sd3", "sd3"),
        ("t5xxl", "sd3", "sd3"),
        ("t5xxl", "chroma", "chroma"),
        ("qwen_3_4b", "lumina2", "z_image"),
        ("qwen_3_4b", "stable_diffusion", "z_image"),
        ("qwen_3_4b", "flux2", "flux2_klein"),
        ("qwen_3_8b", "flux2", "flux2_klein"),
        ("qwen_3_06b", "stable_diffusion", "anima"),
        ("qwen_3_06b", "lumina2", "anima"),
    ],
)
def test_one_encoder(run: PlainRun, name: str, kind: str, recipe: str) -> None:
    found = loaders.load_clip(file(name), kind, run=run)
    assert isinstance(found, TextEncoders) and found.kind == recipe


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "t5xxl",
            "stable_diffusion",
            r"takes .*clip_l.*found .*t5xxl\.safetensors \(t5xxl.*would be .*chroma",
        ),
        ("qwen_3_2b", "ovis", "takes no text encoders that are known here"),
    ],
)
def test_an_encoder_of_another_type_is_told_so(run: PlainRun, name: str, kind: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        loaders.load_clip(file(name), kind, run=run)


@pytest.mark.parametrize(
    ("names", "kind", "recipe"),
    [
        (("clip_l", "t5xxl"), "flux", "flux"),
        (("clip_l", "t5xxl"), "sd3", "sd3"),
        (("t5xxl", "clip_g"), "sd3", "sd3"),
        (("clip_l", "clip_g"), "sd3", "sd3"),
        (("clip_g", "clip_l"), "sdxl", "sdxl"),
    ],
)
def test_two_encoders(run: PlainRun, names: tuple[str, str], kind: str, recipe: str) -> None:
    found = loaders.load_dual_clip(file(names[0]), file(names[1]), kind, run=run)
    assert isinstance(found, TextEncoders) and found.kind == recipe
    assert {part.role for part in found.parts} == set(names)


def test_three_are_stable_diffusion_3s(run: PlainRun) -> None:
    found = loaders.load_triple_clip(file("t5xxl"), file("clip_l"), file("clip_g"), run=run)
    assert isinstance(found, TextEncoders) and found.kind == "sd3"
    with pytest.raises(ModelFileError, match="type 'sd3' takes any of clip_l, clip_g, t5xxl; found"):
        loaders.load_triple_clip(file("t5xxl"), file("clip_l"), file("qwen_3_4b"), run=run)


def test_the_same_encoder_twice_is_refused(run: PlainRun) -> None:
    with pytest.raises(ModelFileError, match="type 'flux' takes clip_l and t5xxl.*found .*t5xxl.*t5xxl"):
        loaders.load_dual_clip(file("t5xxl"), file("t5xxl"), "flux", run=run)
