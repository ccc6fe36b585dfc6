"""Every kind of autoencoder against ComfyUI's figures, on narrow ones; and the registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from loraloom.errors import InputError, OutOfMemory
from loraloom.models.autoencoder import autoencoder_kinds
from loraloom.models.autoencoder_network import AutoencoderNetwork
from loraloom.models.checkpoint import open_autoencoder
from loraloom.models.residency.memory import Memory
from tests.families import autoencoders as narrow

FIGURES = np.load(Path(__file__).parents[1] / "data/families/autoencoders.npz")
WRITERS = {
    "ae": ("kl", narrow.write_ae),
    "flux2-vae": ("flux2", narrow.write_flux2_vae),
    "qwen_image_vae": ("wan", narrow.write_wan),
    "qwen_image_2.1_vae": ("qwen_image21", narrow.write_qwen_image21),
}


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_and_latents_are_comfyuis(tmp_path: Path, name: str) -> None:
    kind, write = WRITERS[name]
    vae = open_autoencoder(write(tmp_path / f"{name}.safetensors"))
    assert vae.kind.name == kind
    network = Memory("cpu", "fp32").autoencoder(vae)
    expected = torch.from_numpy(FIGURES[f"{name}|encoded"])
    encoded = network.encode(torch.from_numpy(FIGURES["pixels"]))
    assert encoded.shape == expected.shape
    assert float((encoded - expected).norm() / expected.norm()) < 1e-5
    decoded = network.decode(torch.from_numpy(FIGURES[f"{name}|latent"]))
    picture = (decoded * 255).to(torch.uint8).numpy().astype(int)
    assert np.abs(picture - FIGURES[f"{name}|image"].astype(int)).max() <= 1
    assert picture.shape[-1] == vae.kind.channels


@pytest.mark.parametrize("name", WRITERS)
def test_a_latent_of_another_family_is_told(tmp_path: Path, name: str) -> None:
    network = Memory("cpu", "fp32").autoencoder(
        open_autoencoder(WRITERS[name][1](tmp_path / "vae.safetensors"))
    )
    other = torch.zeros(1, network.latent_channels + 1, 8, 8)
    for decode in (network.decode, network.decode_tiled):
        with pytest.raises(
            InputError, match=f"{other.shape[1]} channels .* decodes {network.latent_channels}"
        ):
            decode(other)


@pytest.mark.parametrize("name", ["ae", "flux2-vae"])
def test_of_frames_a_still_autoencoder_decodes_the_first(tmp_path: Path, name: str) -> None:
    network = Memory("cpu", "fp32").autoencoder(
        open_autoencoder(WRITERS[name][1](tmp_path / "vae.safetensors"))
    )
    latent = torch.from_numpy(FIGURES[f"{name}|latent"])[:1]
    frames = torch.stack([latent, torch.zeros_like(latent)], dim=2)
    assert torch.equal(network.decode(frames), network.decode(latent))


def test_each_kind_is_a_file_of_its_name() -> None:
    folder = Path(__file__).parents[2] / "src/loraloom/models/autoencoders"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files == set(autoencoder_kinds())


def test_memory_that_runs_out_while_room_is_made_ends_in_tiles_or_is_told(tmp_path: Path) -> None:
    """Weights that come and go to make room are allocations, too."""
    memory = Memory("cpu", "fp32")
    vae = open_autoencoder(narrow.write_ae(tmp_path / "vae.safetensors"))
    latent = torch.from_numpy(FIGURES["ae|latent"])[:1]
    wanted, asked, tiles = memory.autoencoder(vae).decode(latent), list[int](), list[int]()

    def network(fails: int) -> AutoencoderNetwork:
        def has_room(needed: int) -> bool:
            asked.append(needed)
            if len(asked) <= fails:
                raise torch.OutOfMemoryError("1 GB")
            return True

        module = memory.autoencoder(vae)._module  # pyright: ignore[reportPrivateUsage]
        config = vae.kind.blueprint(vae.weights.shapes).config
        asked.clear()
        return AutoencoderNetwork(
            vae.kind, module, config, torch.float32, memory.device, has_room, say_tiles=tiles.append
        )

    torch.testing.assert_close(network(1).decode(latent), wanted, rtol=0, atol=0.1)
    assert tiles == [512]
    with pytest.raises(OutOfMemory, match="tiles of 128 pixels"):
        network(99).decode(latent)
    assert len(asked) == 4  # the smallest tiles ask, too
