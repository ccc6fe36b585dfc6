"""Damaged model files end in a ModelFileError that names the file, never in a traceback or a wrong model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from loraloom.errors import ModelFileError
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.residency.memory import Memory
from tests import tiny_models as tiny

LANDMARKS = (
    "conv_in",
    "input_blocks.0.0",
    "proj_in",
    "to_k",
    "time_embed",
    "label_emb",
    "out.2",
    "norm.key_norm",
)


def damaged(shapes: tiny.Shapes, chance: random.Random) -> tiny.Shapes:
    """One to three tensors gone, of other dimensions, empty, or under another name."""
    found = dict(shapes)
    marked = [name for name in shapes if any(mark in name for mark in LANDMARKS)]
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(marked if chance.random() < 0.7 else list(shapes))
        shape = found.pop(name, shapes[name])
        match chance.randrange(5):
            case 0:
                pass
            case 1:
                found[name] = shape[1:]
            case 2:
                found[name] = (*shape, 2)
            case 3:
                found[name] = tuple(0 if chance.random() < 0.5 else size for size in shape)
            case _:
                found[name] = tuple(size + 1 for size in shape)
    return found


SMALL: dict[str, tiny.Shapes] = {
    "unet": tiny.unet_shapes(width=32, levels=(1, 1), depths=(1, 0), context=8),
    "sdxl": tiny.unet_shapes(width=64, levels=(1, 1), depths=(0, 1), context=8, label=64 + 1536, linear=True),
    "flux": tiny.flux_shapes(width=32, head=16, double=1, single=1, context=8, pooled=8),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(15))
def test_a_damaged_network_is_refused(tmp_path: Path, name: str, seed: int) -> None:
    shapes = damaged(SMALL[name], random.Random(seed))
    path = tiny.write(tmp_path / "damaged.safetensors", shapes)
    if shapes == SMALL[name]:
        return
    with pytest.raises(ModelFileError, match=r"damaged\.safetensors"):
        Memory("cpu", "fp32").resident_module(open_diffusion_model(path))


@pytest.mark.parametrize("name", SMALL)
def test_the_undamaged_networks_load(tmp_path: Path, name: str) -> None:
    path = tiny.write(tmp_path / "whole.safetensors", SMALL[name])
    Memory("cpu", "fp32").resident_module(open_diffusion_model(path))


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_autoencoder_is_refused(tmp_path: Path, seed: int) -> None:
    shapes = tiny.autoencoder_shapes(levels=(1, 1))
    broken = damaged(shapes, random.Random(seed))
    network = tiny.prefixed("model.diffusion_model.", SMALL["unet"])
    whole = tiny.prefixed("first_stage_model.", broken) | network
    path = tiny.write(tmp_path / "damaged.safetensors", whole)
    if broken == shapes:
        return
    with pytest.raises(ModelFileError, match=r"damaged\.safetensors"):
        vae = open_checkpoint(path)[2]
        if vae is None:
            raise ModelFileError("damaged.safetensors holds no autoencoder")
        Memory("cpu", "fp32").autoencoder(vae).decode(torch.zeros(1, 4, 4, 4))
