"""LoRA files of every family: what ComfyUI places, and how large each change is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loraloom.lora.comfyui import known_names
from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import LoadedLora, load_lora
from loraloom.models.checkpoint import open_diffusion_model
from loraloom.models.handles import DiffusionModel
from tests.families.bench import Narrow, Shelf, measured, narrow_models, stated

FILES = [(family, file) for family in narrow_models() for file in stated(family)["lora"]]
KNOWN = [(family, file) for family, file in FILES if stated(family)["lora"][file]["weights_changed"]]
"""Of which ComfyUI places something."""
NATIVE = "diffusion_model."


def _model(shelf: Shelf, narrow: Narrow) -> DiffusionModel:
    name = shelf.network(narrow)
    return open_diffusion_model(shelf.folder / "diffusion_models" / name)


def _load(shelf: Shelf, family: str, file: str, compat: str) -> tuple[DiffusionModel, LoadedLora]:
    narrow = narrow_models()[family]
    model = _model(shelf, narrow)
    path = shelf.folder / "loras" / shelf.lora(narrow, file.removesuffix(".safetensors"))
    component = Component(model.family.name, model.weights.shapes, model.lora_aliases())
    return model, load_lora(read_lora(path), {"model": component}, compat=compat)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("family", "file"), KNOWN)
def test_changes_are_comfyuis(family: str, file: str, shelf: Shelf) -> None:
    model, lora = _load(shelf, family, file, "comfyui")
    expected = stated(family)["lora"][file]
    patches = lora.model.patches()
    assert {NATIVE + name for name in patches} == set(expected["delta_norm"])
    for name, found in patches.items():
        weight = model.weights.read(name, torch.float32)
        changed = weight.clone()
        for patch in found:
            begin, end = patch.rows or (0, len(changed))
            changed[begin:end] = patch.apply(changed[begin:end].clone(), expected["strength"])
        delta = (changed.double() - weight.double()).flatten(1)
        norm = expected["delta_norm"][NATIVE + name]
        assert abs(float(delta.norm()) - norm) <= 1e-4 * norm
        corner = measured(family).get(f"lora|{file}|{NATIVE}{name}")
        if corner is not None:
            found_corner = delta[: corner.shape[0], : corner.shape[1]].numpy()
            assert np.linalg.norm(found_corner - corner) <= 1e-4 * np.linalg.norm(corner)


@pytest.mark.parametrize(("family", "file"), FILES)
def test_every_module_is_placed(family: str, file: str, shelf: Shelf) -> None:
    """Also where ComfyUI misses some."""
    _, lora = _load(shelf, family, file, "trainer")
    assert lora.receipt.complete
    assert lora.receipt.matched == stated(family)["lora"][file]["modules_in_file"]


@pytest.mark.parametrize("family", [name for name in narrow_models() if stated(name)["lora_names"]])
def test_the_names_that_comfyui_knows(family: str, shelf: Shelf) -> None:
    """The figures list the names of some of the weights."""
    narrow = narrow_models()[family]
    model = _model(shelf, narrow)
    listed = {w.removeprefix(NATIVE): names for w, names in stated(family)["lora_names"].items()}
    shapes = {weight: shape for weight, shape in model.weights.shapes.items() if weight in listed}
    aliases = {path: target for path, target in model.lora_aliases().items() if target.weight in shapes}
    known = known_names("model", Component(model.family.name, shapes, aliases))
    assert known == {name for weight in shapes for name in (*listed[weight], *narrow.newer_names(weight))}
