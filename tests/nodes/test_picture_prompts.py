"""Prompts with pictures, as nodes make them, against ComfyUI's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_autoencoder, open_text_encoders
from loraloom.models.handles import TextEncoders
from loraloom.nodes import picture_prompts, text_generation
from loraloom.sampling.types import Cond
from tests import narrow_models as narrow
from tests import tiny_models as tiny
from tests.conftest import NarrowFile
from tests.models.text import figures
from tests.nodes.runs import PlainRun

WINTER = "make it winter"


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    return PlainRun(tmp_path)


@pytest.fixture(scope="module")
def qwen_image(narrow_file: NarrowFile) -> TextEncoders:
    return open_text_encoders((narrow_file(narrow.write_qwen25vl),), "qwen_image")


@pytest.fixture(scope="module")
def qwen_image21(narrow_file: NarrowFile) -> TextEncoders:
    return open_text_encoders((narrow_file(narrow.write_qwen3vl_8b),), "qwen_image")


@pytest.fixture(scope="module")
def krea2(narrow_file: NarrowFile) -> TextEncoders:
    return open_text_encoders((narrow_file(narrow.write_qwen3vl_4b),), "krea2")


def references(cond: Cond) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", cond.options["reference_latents"])


def images(**connected: Tensor) -> Any:
    return {f"images.{name}": image for name, image in connected.items()}


def knobs(**said: object) -> Any:
    return {f"sampling_mode.{name}": value for name, value in said.items()}


def picture(name: str) -> Tensor:
    return torch.from_numpy(figures.measured()[name])


def test_several_pictures_by_number(run: PlainRun, qwen_image: TextEncoders) -> None:
    shown = [picture(f"qwen_edit_edit|pic|{name}") for name in "AB"]
    (cond,) = picture_prompts.encode_for_edit_plus(qwen_image, WINTER, None, *shown, run=run)
    assert figures.distance(cond.context, "qwen_edit_edit|plus_two_no_vae") < 1e-5
    assert "reference_latents" not in cond.options


def test_one_picture(run: PlainRun, qwen_image: TextEncoders) -> None:
    shown = picture("qwen_edit_edit|pic|A")
    (cond,) = picture_prompts.encode_for_edit(qwen_image, WINTER, None, shown, run=run)
    assert figures.distance(cond.context, "qwen_edit_edit|edit_no_vae") < 1e-5


def test_krea2_reads_pictures_as_qwen_image_does(run: PlainRun, krea2: TextEncoders) -> None:
    shown = picture("krea2_edit|pic|A")
    (cond,) = picture_prompts.encode_for_edit_plus(krea2, WINTER, None, shown, run=run)
    assert figures.distance(cond.context, "krea2_edit|plus_no_vae") < 1e-5


def test_an_autoencoder_makes_references(
    run: PlainRun, qwen_image: TextEncoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_prompts, "VAE_AREA", 96 * 96)
    monkeypatch.setattr(picture_prompts, "SEEN_AREA", 64 * 64)
    vae = open_autoencoder(tiny.write_vae(tmp_path / "vae.safetensors"))
    shown = torch.rand(1, 40, 60, 3)
    (cond,) = picture_prompts.encode_for_edit_plus(qwen_image, "a", vae, None, shown, run=run)
    (latent,) = references(cond)
    height, width = (side // 8 for side in picture_prompts.to_area(shown, 96 * 96, 8).shape[1:3])
    assert latent.shape[-2:] == (height, width)


@pytest.mark.parametrize("case", range(3))
def test_sizes_are_comfyuis(case: int) -> None:
    stated = figures.stated()["edit_sizes"][case]
    for index, (height, width) in enumerate(stated["pictures_h_w"]):
        shown = torch.zeros(1, height, width, 3)
        assert list(picture_prompts.to_area(shown, 384 * 384).shape) == stated["plus_tower"][index]
        assert list(picture_prompts.to_area(shown, 1024 * 1024, 8).shape) == stated["plus_vae"][index]
        if index == 0:
            assert list(picture_prompts.to_area(shown, 1024 * 1024).shape) == stated["edit_tower"][0]


def test_qwen_image21_with_pictures(run: PlainRun, qwen_image21: TextEncoders, tmp_path: Path) -> None:
    """Its own autoencoder takes four channels; what matters here is that there is one."""
    first, second = (picture(f"qwen_image21_edit|pic|{name}") for name in "AB")
    (kept,), _, latent = picture_prompts.encode_for_qwen_image21(
        qwen_image21, WINTER, "", None, 0, run=run, **images(image_1=second)
    )
    assert figures.distance(kept.context, "qwen_image21_edit|keep_vision") < 1e-5
    assert latent["samples"].shape == (1, 64, *(side // 16 for side in second.shape[1:3]))
    vae = open_autoencoder(tiny.write_vae(tmp_path / "vae.safetensors"))
    both = images(image_10=second, image_2=first[..., :3])
    (cond,), (negative,), _ = picture_prompts.encode_for_qwen_image21(
        qwen_image21, WINTER, "blurry", vae, 0, run=run, **both
    )
    slots = figures.stated()["qwen_image21_edit"]["slots"]["two"]
    for given in (cond, negative):
        assert given.extras["image_slots"].tolist() == [slots]
        assert [latent.shape[-2:] for latent in references(given)] == [(12, 16), (8, 12)]


def test_qwen_image21_without_pictures(run: PlainRun, qwen_image21: TextEncoders) -> None:
    (positive,), (negative,), latent = picture_prompts.encode_for_qwen_image21(
        qwen_image21, "a red fox in the snow, oil painting", "", resolution=500, run=run
    )
    assert figures.distance(positive.context, "qwen_image21|0") < 1e-5
    assert negative.context.shape[1] == figures.measured()["qwen_image21|1|norm"].shape[1] + 1
    assert latent["samples"].shape == (1, 64, 32, 32)
    with pytest.raises(InputError, match="image_1"):
        picture_prompts.encode_for_qwen_image21(
            qwen_image21, "a", "", run=run, **images(x=torch.zeros(1, 8, 8, 3))
        )


def test_alpha_lies_over_white(run: PlainRun, qwen_image21: TextEncoders) -> None:
    shown = picture("qwen_image21_edit|pic|A")
    (whole,), _, _ = picture_prompts.encode_for_qwen_image21(
        qwen_image21, WINTER, "", None, 0, run=run, **images(image_1=shown)
    )
    flat = shown[..., :3] * shown[..., 3:] + (1 - shown[..., 3:])
    (same,), _, _ = picture_prompts.encode_for_qwen_image21(
        qwen_image21, WINTER, "", None, 0, run=run, **images(image_1=flat)
    )
    assert torch.equal(whole.context, same.context)
    kept = torch.cat([whole.context[:, :8], whole.context[:, -9:]], dim=1)
    assert figures.distance(kept, "qwen_image21_edit|one") < 1e-5


def test_text_generation(run: PlainRun, krea2: TextEncoders) -> None:
    case = figures.stated()["textgen_krea2"]["no_think"]
    said = {name: value for name, value in case["sampling_mode"].items() if name != "sampling_mode"}
    text = text_generation.generate(krea2, case["prompt"], max_length=24, run=run, **knobs(**said))
    assert text == (case["text"], "")
    assert run.steps[-1] == (24, 24)
    with pytest.raises(InputError, match="no videos"):
        text_generation.generate(krea2, "a", video=torch.zeros(1, 8, 8, 3), run=run)
    with pytest.raises(InputError, match=r"sampling_mode.seed should be a number, not 'x'"):
        text_generation.generate(krea2, "a", run=run, **knobs(seed="x"))
    with pytest.raises(InputError, match="above 0"):
        text_generation.generate(krea2, "a", run=run, **knobs(temperature=0.0))
