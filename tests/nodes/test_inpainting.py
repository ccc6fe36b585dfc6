"""Inpainting latents and tiled autoencoding on a narrow autoencoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraloom.models.checkpoint import open_autoencoder
from loraloom.models.handles import Autoencoder
from loraloom.models.residency import residents as residents_module
from loraloom.models.residency.activations import DECODER_MAPS, picture_bytes
from loraloom.nodes import inpainting
from loraloom.runtime.services import services
from tests import tiny_models
from tests.no_memory import Fail, both_kinds
from tests.nodes.runs import PlainRun


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    return PlainRun(tmp_path)


@pytest.fixture
def vae(tmp_path: Path) -> Autoencoder:
    return open_autoencoder(tiny_models.write_vae(tmp_path / "vae.safetensors"))


def test_the_hole_is_grey_and_its_mask_grown(run: PlainRun, vae: Autoencoder) -> None:
    pixels = torch.rand(1, 67, 64, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 67, 64)
    mask[:, 20:40, 20:40] = 1
    latent = inpainting.encode_for_inpainting(pixels, vae, mask, 6, run=run)
    hole = latent.get("noise_mask", torch.empty(0))
    assert hole.shape == (1, 64, 64) and hole.sum() == 25 * 25
    grey = pixels[:, 1:65].clone()
    grey[:, 19:39, 20:40] = 0.5
    expected = services(run).memory.autoencoder(vae).encode(grey)
    torch.testing.assert_close(latent["samples"], expected)
    plain = inpainting.encode_for_inpainting(pixels, vae, mask, 0, run=run)
    assert plain.get("noise_mask", torch.empty(0)).sum() == 400


def test_tiles_give_nearly_the_same_picture(run: PlainRun, vae: Autoencoder) -> None:
    network = services(run).memory.autoencoder(vae)
    samples = torch.randn(1, 4, 8, 10, generator=torch.Generator().manual_seed(2))
    whole = network.decode(samples)
    torch.testing.assert_close(inpainting.decode_tiled({"samples": samples}, vae, run=run), whole)
    tiled = inpainting.decode_tiled({"samples": samples}, vae, 64, 64, run=run)
    assert tiled.shape == whole.shape
    assert 0 < (tiled - whole).abs().mean() < 0.2
    encoded = inpainting.encode_tiled(whole, vae, 64, 16, run=run)["samples"]
    assert encoded.shape == samples.shape


@both_kinds
def test_too_little_memory_falls_back_to_tiles(
    run: PlainRun, vae: Autoencoder, monkeypatch: pytest.MonkeyPatch, fail: Fail
) -> None:
    network = services(run).memory.autoencoder(vae)
    samples = torch.randn(1, 4, 2, 160, generator=torch.Generator().manual_seed(3))
    expected = network.decode_tiled(samples)
    plain = network._decode  # pyright: ignore[reportPrivateUsage]

    def small(latent: torch.Tensor) -> torch.Tensor:
        if latent.shape[-1] == 160:
            fail()
        return plain(latent)

    monkeypatch.setattr(network, "_decode", small)
    with pytest.raises(RuntimeError):
        small(samples)
    assert torch.equal(network.decode(samples), expected)


def test_tiles_are_as_large_as_memory_allows(
    run: PlainRun, vae: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = services(run).memory.autoencoder(vae)
    samples = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(3))
    picture = network.decode(samples)  # 320 × 320 pixels
    width = network._kind.width(network._config)  # pyright: ignore[reportPrivateUsage]
    sizes: list[int] = []
    plain = network._decode  # pyright: ignore[reportPrivateUsage]

    def seen(latent: torch.Tensor) -> torch.Tensor:
        sizes.append(latent.shape[-2] * latent.shape[-1])
        return plain(latent)

    monkeypatch.setattr(network, "_decode", seen)
    for pixels, largest in ((320 * 320, 40 * 40), (256 * 256, 32 * 32), (0, 16 * 16)):
        room = picture_bytes(width, pixels, 4, DECODER_MAPS)
        monkeypatch.setattr(residents_module, "available_memory", lambda device, room=room: room)
        sizes.clear()
        assert network.decode(samples).shape == picture.shape
        assert max(sizes) == largest
        sizes.clear()
    assert network.encode(picture).shape == samples.shape
