"""The networks of a full-size Stable Diffusion 1.5 give the figures measured on ComfyUI v0.3.64."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from loraloom.models.checkpoint import open_autoencoder, open_checkpoint
from loraloom.models.residency.memory import Memory
from loraloom.sampling.inputs import Inputs, Tokens

FIGURES = Path(__file__).parents[1] / "data" / "parity" / "networks_sd15.npz"
CHECKPOINT = "checkpoints/v1-5-pruned-emaonly-fp16.safetensors"
EXTERNAL = "vae/vae-ft-mse-840000-ema-pruned.safetensors"

pytestmark = pytest.mark.heavy


@cache
def figure(name: str) -> Tensor:
    with np.load(FIGURES) as figures:
        return torch.from_numpy(figures[name])


def model_file(name: str) -> Path:
    folder = os.environ.get("LORALOOM_PARITY_MODELS")
    if not folder:
        pytest.skip("LORALOOM_PARITY_MODELS names no folder with full-size models")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def distance(found: Tensor, name: str) -> float:
    expected = figure(name)
    return float((found - expected).norm() / expected.norm())


@torch.inference_mode()
def test_the_network_at_three_times() -> None:
    model, _, _ = open_checkpoint(model_file(CHECKPOINT))
    network = Memory("cpu", "fp32").network(model)
    for time in (1, 500, 999):
        found = network(
            figure("unet|x"),
            torch.full((2,), float(time)),
            Inputs({"context": Tokens(figure("unet|context"))}),
        )
        assert distance(found, f"unet|out|{time}") < 1e-5


def test_the_autoencoder_of_the_checkpoint_decodes() -> None:
    _, _, vae = open_checkpoint(model_file(CHECKPOINT))
    assert vae is not None
    found = Memory("cpu", "fp32").autoencoder(vae).decode(figure("vae|z"))
    assert distance(found, "vae|decoded_checkpoint") < 1e-5


def test_an_autoencoder_file_decodes_and_encodes() -> None:
    network = Memory("cpu", "fp32").autoencoder(open_autoencoder(model_file(EXTERNAL)))
    assert distance(network.decode(figure("vae|z")), "vae|decoded_external") < 1e-5
    assert distance(network.encode(figure("vae|image")), "vae|encoded_external") < 1e-5
