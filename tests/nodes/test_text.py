"""Prompt nodes on narrow checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraloom.engine.node import node_types
from loraloom.errors import InputError, LoraloomError
from loraloom.models.checkpoint import open_checkpoint, open_text_encoders
from loraloom.models.handles import TextEncoders
from loraloom.nodes import text
from tests import narrow_models as narrow
from tests import tiny_models
from tests.conftest import NarrowFile
from tests.nodes.runs import PlainRun


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    return PlainRun(tmp_path)


@pytest.fixture
def sdxl(tmp_path: Path) -> TextEncoders:
    _, clip, _ = open_checkpoint(tiny_models.write_sdxl(tmp_path / "tiny.safetensors"))
    assert clip is not None
    return clip


def test_prompts_and_clip_skip(run: PlainRun, tmp_path: Path) -> None:
    _, clip, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    assert clip is not None
    (cond,) = text.encode_text("a red rose", clip, run=run)
    (skipped,) = text.encode_text("a red rose", text.set_last_layer(clip, -2), run=run)
    assert cond.context.shape == (1, 77, 64) and not cond.options
    assert not torch.allclose(cond.context, skipped.context)


def test_encoders_that_give_no_numbers_are_said_to(run: PlainRun, tmp_path: Path) -> None:
    path = tiny_models.write_sd15(tmp_path / "tiny.safetensors")
    tensors = load_file(path)
    tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"][3] = float("nan")
    save_file(tensors, tmp_path / "bad.safetensors")
    _, clip, _ = open_checkpoint(tmp_path / "bad.safetensors")
    assert clip is not None
    with pytest.raises(LoraloomError, match="text encoders gave values that are no numbers"):
        text.encode_text("a red rose", clip, run=run)


def test_unknown_embeddings_are_warned_of(run: PlainRun, sdxl: TextEncoders) -> None:
    text.encode_text("a embedding:nowhere", sdxl, run=run)
    (warning,) = run.warnings
    assert "nowhere" in warning


def test_sdxl_carries_its_sizes(run: PlainRun, sdxl: TextEncoders) -> None:
    (cond,) = text.encode_text_sdxl(
        clip=sdxl, width=640, height=512, crop_h=8, target_width=700, text_g="a", text_l="b", run=run
    )
    assert cond.options == {
        "width": 640,
        "height": 512,
        "crop_w": 0,
        "crop_h": 8,
        "target_width": 700,
        "target_height": 1024,
    }
    (same,) = text.encode_text("a", sdxl, run=run)
    assert torch.equal(cond.context[..., 64:], same.context[..., 64:])


def test_the_refiner_carries_its_score(run: PlainRun, tmp_path: Path) -> None:
    _, clip, _ = open_checkpoint(tiny_models.write_refiner(tmp_path / "refiner.safetensors"))
    assert clip is not None
    (cond,) = text.encode_text_sdxl_refiner(ascore=2.5, width=8, height=16, text="a", clip=clip, run=run)
    assert cond.options == {"aesthetic_score": 2.5, "width": 8, "height": 16}


def test_flux_carries_guidance_and_heeds_the_padding(run: PlainRun, tmp_path: Path) -> None:
    paths = (tiny_models.write_t5(tmp_path / "t5"), tiny_models.write_clip_l(tmp_path / "l"))
    clip = open_text_encoders(paths, "flux")
    (cond,) = text.encode_text_flux(clip, "a", "b", 2.0, run=run)
    assert cond.options == {"guidance": 2.0} and cond.context.shape == (1, 256, 64)
    (short,) = text.encode_text("a", text.t5_tokenizer_options(clip, 0, 8), run=run)
    assert short.context.shape == (1, 8, 64)


def test_a_checkpoint_without_text_encoders_is_explained(run: PlainRun) -> None:
    with pytest.raises(InputError, match="CLIPLoader"):
        text.encode_text("a", None, run=run)  # type: ignore[arg-type]


def test_an_overwritten_embedding_is_read_again(run: PlainRun, tmp_path: Path) -> None:
    folder = tmp_path / "models/embeddings"
    folder.mkdir(parents=True)
    (kind,) = node_types(text.encode_text)
    assert kind.is_changed is not None

    def state() -> object:
        return kind.is_changed and kind.is_changed(text="a (embedding:mine, b:1.2)", clip=None, run=run)

    missing = state()
    save_file({"x": torch.zeros(1, 64)}, folder / "mine.safetensors")
    first = state()
    assert missing == [["mine", ()]] and first != missing
    assert first == state()
    save_file({"x": torch.zeros(2, 64)}, folder / "mine.safetensors")
    assert state() != first


@pytest.fixture
def sd3(narrow_file: NarrowFile) -> TextEncoders:
    writers = (narrow.write_clip_l, narrow.write_clip_g, narrow.write_wide_t5)
    return open_text_encoders(tuple(narrow_file(write) for write in writers), "sd3")


def test_sd3_takes_a_prompt_per_encoder(run: PlainRun, sd3: TextEncoders) -> None:
    (plain,) = text.encode_text("two cats", sd3, run=run)
    (same,) = text.encode_text_sd3(sd3, "two cats", "two cats", "two cats", "none", run=run)
    assert torch.equal(plain.context, same.context)
    (padded,) = text.encode_text_sd3(sd3, "two cats", "", "", "empty_prompt", run=run)
    (short,) = text.encode_text_sd3(sd3, "two cats", "", "", "none", run=run)
    assert padded.context.shape[1] == 154 and short.context.shape[1] == 78
    assert torch.equal(padded.context[:, :77], short.context[:, :77])
    (only_t5,) = text.encode_text_sd3(sd3, "", "", "two cats", "none", run=run)
    assert only_t5.pooled is not None and not only_t5.pooled.any()
    assert torch.equal(only_t5.context[..., :320], plain.context[:, 77:])


def test_lumina2_has_its_own_opening(run: PlainRun, narrow_file: NarrowFile) -> None:
    clip = open_text_encoders((narrow_file(narrow.write_gemma2),), "lumina2")
    (cond,) = text.encode_text_lumina2("alignment", "two cats", clip, run=run)
    opening = text.LUMINA2_SYSTEMS["alignment"] + " <Prompt Start> two cats"
    (same,) = text.encode_text(opening, clip, run=run)
    assert torch.equal(cond.context, same.context)


def test_prompts_for_encoders_of_another_family_are_refused(run: PlainRun, narrow_file: NarrowFile) -> None:
    clip = open_text_encoders((narrow_file(narrow.write_qwen3_4b),), "lumina2")
    with pytest.raises(InputError, match=r"z_image.*prompts are for l, t5xxl; use CLIPTextEncode"):
        text.encode_text_flux(clip, "a", "b", run=run)
