"""Ways to place reference pictures that a conditioning asks for and a family has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_diffusion_model
from loraloom.models.residency.memory import Memory
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, SampleContext
from tests.families.bench import narrow_models


def inputs(folder: Path, name: str, method: str, say: Callable[[str], None] = print) -> Inputs:
    path = narrow_models()[name].network().write(folder / f"{name}.safetensors")
    network = replace(Memory("cpu", "fp32").network(open_diffusion_model(path)), say=say)
    x = torch.zeros(1, 16, 4, 4)
    context = torch.zeros(1, 3, network.family.context_width(network.config))
    options = {"reference_latents": (x, x), "reference_latents_method": method}
    return network.inputs(Cond(context, options=options), SampleContext(x, x))


def test_qwen_image_takes_the_method_of_uso_for_side_by_side(tmp_path: Path) -> None:
    """ComfyUI's comparison has no branch for it, and ends in that."""
    found = inputs(tmp_path, "qwen_image", "uxo")
    assert found.placing == "offset" and len(found.references) == 2


def test_krea2_says_which_it_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="by the method 'offset'; it knows index, index_timestep_zero"):
        inputs(tmp_path, "krea2", "offset")


def test_krea2_says_that_it_asks_for_one(tmp_path: Path) -> None:
    said: list[str] = []
    assert inputs(tmp_path, "krea2", "", said.append).references == ()
    (warning,) = said
    assert warning.endswith("to place them: add FluxKontextMultiReferenceLatentMethod")
