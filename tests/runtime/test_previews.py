"""Previews: with a tiny decoder where its file is there, with mixed colours elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from loraloom.errors import InputError, ModelFileError
from loraloom.folders import ModelFolders
from loraloom.models.autoencoder_network import TinyDecoder
from loraloom.models.families.flux.family import FAMILY as FLUX
from loraloom.models.families.sd15.family import FAMILY as SD15
from loraloom.models.residency.memory import Memory
from loraloom.nodes.loaders import load_vae
from loraloom.runtime.previews import LatentPreview, Previews
from loraloom.sampling.types import Step
from tests.models.test_tiny_autoencoder import halves, written
from tests.no_memory import Fail, both_kinds
from tests.nodes.runs import PlainRun

DENOISED = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(1))
STEP = Step(0, torch.zeros(1, 4, 8, 6), DENOISED, torch.tensor(1.0))


def shown(models: Path, previews: Previews | None = None) -> tuple[LatentPreview, list[str]]:
    warnings: list[str] = []
    show = (previews or Previews()).of(
        SD15.latents, ModelFolders([models]), Memory("cpu", "fp32"), warnings.append
    )
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
