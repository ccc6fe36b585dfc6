"""Prompts that were encoded for another family."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_diffusion_model
from loraloom.models.residency.memory import Memory
from loraloom.sampling.types import Cond, SampleContext
from tests.families.bench import Shelf, narrow_models


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("krea2", r"reads 768.*qwen3vl \(4b\).*type krea2"),
        ("qwen_image", r"reads 256.*qwen25vl \(7b\).*type qwen_image"),
        ("qwen_image21", r"reads 64.*qwen3vl \(8b\).*type qwen_image"),
        ("z_image", r"reads 64.*qwen3 \(4b\).*type lumina2"),
    ],
)
def test_they_are_refused(name: str, wanted: str, shelf: Shelf) -> None:
    file = shelf.network(narrow_models()[name])
    model = open_diffusion_model(shelf.folder / "diffusion_models" / file)
    x = torch.zeros(1, model.family.latents.channels, 4, 4)
    with pytest.raises(InputError, match="5 wide.*" + wanted):
        Memory("cpu", "fp32").network(model).inputs(Cond(torch.zeros(1, 3, 5)), SampleContext(x, x))
