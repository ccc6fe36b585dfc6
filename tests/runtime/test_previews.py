"""Previews: with a tiny decoder where its file is there, with mixed colours elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loraloom.demo.files import CHECKPOINT
from loraloom.errors import InputError, ModelFileError
from loraloom.folders import ModelFolders
from loraloom.models.autoencoder_network import TinyDecoder
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.families.flux.family import FAMILY as FLUX
from loraloom.models.families.sd15.family import FAMILY as SD15
from loraloom.models.latent_format import COLOURS, LatentFormat, with_own_colours
from loraloom.models.residency.memory import Memory
from loraloom.nodes.autoencoding import vae_encode
from loraloom.nodes.loaders import load_vae
from loraloom.runtime.previews import LatentPreview, Previews, as_picture
from loraloom.sampling.types import Step
from tests.models.test_tiny_autoencoder import halves, written
from tests.no_memory import Fail, both_kinds
from tests.nodes.runs import PlainRun

DENOISED = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(1))
ROSE = Path(__file__).parents[2] / "docs/pictures/first.webp"
STEP = Step(0, torch.zeros(1, 4, 8, 6), DENOISED, torch.tensor(1.0))


def shown(
    models: Path, previews: Previews | None = None, colours: str | None = None
) -> tuple[LatentPreview, list[str]]:
    """colours: that the model's file states."""
    warnings: list[str] = []
    found = previews or Previews()
    stated = {} if colours is None else {COLOURS: colours}
    show = found.of(SD15.latents, ModelFolders([models]), Memory("cpu", "fp32"), warnings.append, stated)
    preview = show(STEP)
    assert preview is not None
    return preview, warnings


@torch.no_grad()
def test_a_tiny_decoder_shows_the_latent(tmp_path: Path) -> None:
    plain, _ = shown(tmp_path)
    assert plain.decoder is None and plain.picture().size == (48, 64)
    _, decoder = halves()
    written(tmp_path / "vae_approx", "taesd", "decoder", decoder)
    preview, warnings = shown(tmp_path)
    wanted = decoder(STEP.denoised)[0].clamp(0, 1).movedim(0, -1) * 255
    found = np.asarray(preview.picture()).astype(float)
    assert np.abs(found - wanted.numpy()).max() < 1.01 and not warnings
    assert preview.picture(longest_side=32).size == (24, 32)
    mixed = np.asarray(preview.picture(method="latent2rgb"))
    assert np.array_equal(mixed, np.asarray(plain.picture()))
    assert not np.array_equal(mixed, np.asarray(preview.picture(method="taesd")))


def test_the_decoder_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    _, decoder = halves(width=8)
    written(tmp_path / "vae_approx", "taesd", "decoder", decoder)
    previews = Previews()
    first, _ = shown(tmp_path, previews)
    again, _ = shown(tmp_path, previews)
    assert first.decoder is again.decoder is not None
    written(tmp_path / "vae_approx", "taesd", "decoder", halves(width=16)[1])
    assert shown(tmp_path, previews)[0].decoder is not first.decoder


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_decoder_that_cannot_be_used_is_warned_of(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vae_approx/taesd_decoder.{suffix}"
    path.parent.mkdir()
    path.write_bytes(b"\x80\x02}q\x00.")
    preview, warnings = shown(tmp_path)
    assert preview.decoder is None and preview.picture().size == (48, 64)
    assert len(warnings) == 1 and path.name in warnings[0]


def test_each_family_has_its_own_decoder(tmp_path: Path) -> None:
    written(tmp_path / "vae_approx", "taef1", "decoder", halves(16, width=8)[1])
    assert shown(tmp_path)[0].decoder is None
    step = Step(0, torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 8, 8), torch.tensor(1.0))
    show = Previews().of(FLUX.latents, ModelFolders([tmp_path]), Memory("cpu", "fp32"), pytest.fail)
    preview = show(step)
    assert preview is not None and preview.decoder is not None and preview.picture().size == (64, 64)


def test_tiny_autoencoders_are_offered_where_both_halves_are(tmp_path: Path) -> None:
    run, folder = PlainRun(tmp_path), tmp_path / "models/vae_approx"
    folders = ModelFolders([tmp_path / "models"])
    encoder, decoder = halves(width=8)
    with pytest.raises(InputError, match=r"taesd_encoder\.safetensors"):
        load_vae("taesd", run=run)
    written(folder, "taesd", "encoder", encoder)
    (folder / "taesd_decoder.pth").write_bytes(b"\x80\x02}q\x00.")
    assert folders.list("tiny_vae") == ["taesd"]
    with pytest.raises(ModelFileError, match="pickle"):
        load_vae("taesd", run=run)
    path = written(folder, "taesd", "decoder", decoder)
    assert folders.find("tiny_vae", "taesd") == path
    vae = load_vae("taesd", run=run)
    assert vae.kind.name == "taesd"
    assert folders.find("tiny_vae", "taesdxl") is None and folders.find("tiny_vae", "other") is None


@both_kinds
def test_without_memory_for_the_decoder_colours_are_mixed(
    tmp_path: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "vae_approx", "taesd", "decoder", halves(width=8)[1])
    preview, _ = shown(tmp_path)
    mixed = preview.picture(method="latent2rgb")
    assert preview.picture().tobytes() != mixed.tobytes()
    monkeypatch.setattr(TinyDecoder, "__call__", lambda self, latent: fail())
    assert preview.picture().tobytes() == mixed.tobytes()


def test_a_model_may_state_the_colours_of_its_latents(tmp_path: Path) -> None:
    written(tmp_path / "vae_approx", "taesd", "decoder", halves()[1])
    rows = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0.5, 0, -0.5]]
    preview, warnings = shown(tmp_path, colours=json.dumps(rows))
    rgb = DENOISED[0, :3].movedim(0, -1) + torch.tensor([0.5, 0, -0.5])
    wanted = as_picture((rgb + 1) / 2).resize((48, 64), Image.Resampling.BICUBIC)
    assert preview.decoder is None and preview.picture().tobytes() == wanted.tobytes() and not warnings


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "[[1, 2, 3]]", json.dumps([[1, 2]] * 5), json.dumps([[1, 2, 1e999]] * 5),
             json.dumps([[1, 2, "x"]] * 5), json.dumps([[1, 2, 10**999]] * 5), "[" * 100_000]
)  # fmt: skip
def test_colours_that_are_none_are_warned_of(tmp_path: Path, text: str) -> None:
    preview, warnings = shown(tmp_path, colours=text)
    assert preview.format is SD15.latents
    assert len(warnings) == 1 and "5 rows of three numbers" in warnings[0]


def test_the_demo_states_colours_near_those_that_it_decodes(tmp_path: Path) -> None:
    """SD1.5's own factors show its latents in other colours altogether: its autoencoder is its own."""
    run = PlainRun(tmp_path)
    model, _, vae = open_checkpoint(CHECKPOINT)
    assert vae is not None
    with Image.open(ROSE) as picture:
        pixels = (
            torch.tensor(np.asarray(picture.convert("RGB").crop((12, 12, 204, 204))))[None] / 255
        )  # (1, 192, 192, 3)
    latent = model.latent.into(vae_encode(pixels, vae, run=run)["samples"])
    small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)[0].movedim(0, -1)

    def error(latents: LatentFormat) -> float:
        found = np.asarray(LatentPreview(latent[0], replace(latents, pixels=1)).picture())
        return float((torch.tensor(found) / 255 - small).square().mean().sqrt())

    own = error(with_own_colours(model.latent, model.weights.metadata))
    assert own < 0.1 < 0.3 < error(model.latent)
