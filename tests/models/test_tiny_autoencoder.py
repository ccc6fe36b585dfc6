"""Tiny autoencoders from files in their original layout, against that layout written out as a sequence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from loraloom.errors import ModelFileError
from loraloom.models.autoencoder_network import TinyDecoder
from loraloom.models.checkpoint import open_tiny_autoencoder
from loraloom.models.residency.memory import Memory
from loraloom.models.tiny_autoencoder import LATENTS

CPU = torch.device("cpu")


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [conv(width, width) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def halves(latent: int = 4, width: int = 64) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder with random weights."""
    torch.manual_seed(latent)
    encoder: list[nn.Module] = [conv(3, width), Block(width)]
    decoder: list[nn.Module] = [Clamp(), conv(latent, width), nn.ReLU()]
    for _ in range(3):
        encoder += [conv(width, width, stride=2, bias=False), *(Block(width) for _ in range(3))]
        decoder += [*(Block(width) for _ in range(3)), nn.Upsample(scale_factor=2)]
        decoder.append(conv(width, width, bias=False))
    encoder.append(conv(width, latent))
    last = conv(width, 3)
    last.weight.data.mul_(20)  # pictures with contrast around grey
    nn.init.constant_(last.bias if last.bias is not None else last.weight, 0.5)
    decoder += [Block(width), last]
    return nn.Sequential(*encoder).eval(), nn.Sequential(*decoder).eval()


def written(folder: Path, name: str, half: str, module: nn.Module) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{half}.safetensors"
    save_file(module.state_dict(), path)
    return path


@pytest.mark.parametrize(("name", "latent"), [("taesd", 4), ("taesdxl", 4), ("taesd3", 16), ("taef1", 16)])
@torch.no_grad()
def test_a_tiny_autoencoder_computes_as_its_files_say(tmp_path: Path, name: str, latent: int) -> None:
    encoder, decoder = halves(latent)
    paths = (written(tmp_path, name, "encoder", encoder), written(tmp_path, name, "decoder", decoder))
    vae = open_tiny_autoencoder(name, *paths)
    network = Memory("cpu", "fp32").autoencoder(vae)
    assert (network.latent_channels, network.downscale, vae.latent_channels) == (latent, 8, latent)
    scale, shift = LATENTS[name]
    pictures = torch.rand(2, 24, 16, 3)
    encoded = network.encode(pictures)
    torch.testing.assert_close((encoded - shift) * scale, encoder(pictures.movedim(-1, 1)))
    latents = torch.randn(2, latent, 3, 2) / scale + shift
    decoded = decoder((latents - shift) * scale).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(network.decode(latents), decoded)
    assert float(decoded.std()) > 0.02


def test_a_narrow_one_in_half_precision_is_read_too(tmp_path: Path) -> None:
    encoder, decoder = (half.half() for half in halves(width=8))
    paths = (written(tmp_path, "taesd", "encoder", encoder), written(tmp_path, "taesd", "decoder", decoder))
    network = Memory("cpu", "fp32").autoencoder(open_tiny_autoencoder("taesd", *paths))
    assert network.decode(torch.zeros(1, 4, 2, 3)).shape == (1, 16, 24, 3)
    assert network.encode(torch.zeros(1, 17, 8, 3)).shape == (1, 4, 2, 1)


@torch.no_grad()
def test_the_decoder_alone_decodes_network_latents(tmp_path: Path) -> None:
    _, decoder = halves(latent=16)
    path = written(tmp_path, "taef1", "decoder", decoder)
    latent = torch.randn(16, 2, 3)
    found = TinyDecoder(path, 16, torch.float32, CPU)(latent)
    torch.testing.assert_close(found, decoder(latent[None])[0].clamp(0, 1).movedim(0, -1))
    with pytest.raises(ModelFileError, match=r"taef1_decoder.*16 channels, not of 4"):
        TinyDecoder(path, 4, torch.float32, CPU)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    encoder, decoder = halves(width=8)
    good = written(tmp_path, "taesd", "encoder", encoder), written(tmp_path, "taesd", "decoder", decoder)
    other = tmp_path / "other.safetensors"
    save_file({"model.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(ModelFileError, match=r"other.*do not make a tiny autoencoder"):
        open_tiny_autoencoder("taesd", good[0], other)
    with pytest.raises(ModelFileError, match=r"other.*do not make the decoder"):
        TinyDecoder(other, 4, torch.float32, CPU)
    with pytest.raises(ModelFileError, match=r"taesd_encoder.*tiny autoencoder"):
        open_tiny_autoencoder("taesd", good[1], good[0])
    cut = {name: t for name, t in decoder.state_dict().items() if name != "8.conv.2.weight"}
    save_file(cut, other)
    with pytest.raises(ModelFileError, match=r"other.*8\.conv\.2\.weight"):
        TinyDecoder(other, 4, torch.float32, CPU)
    pickled = tmp_path / "taesd_decoder.pth"
    pickled.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelFileError, match="pickle"):
        TinyDecoder(pickled, 4, torch.float32, CPU)
