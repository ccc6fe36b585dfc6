"""Every algebra in a batch with another LoRA: each row as by itself, and the plan says which way it took."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor

from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import LoadedLora, load_lora
from loraloom.models.handles import DiffusionModel
from loraloom.weights.patch import PatchUse
from tests.lora import oracles
from tests.models.plain_loras import plain_lora
from tests.models.residency.test_together import Runs, model

__all__ = ["model"]

BESIDE = {"lora", "tucker"}
"""Algebras that have factors."""


def loaded(folder: Path, algorithm: str, model: DiffusionModel) -> LoadedLora:
    """A LoRA of that algebra for the queries of every self-attention."""
    tensors: dict[str, Tensor] = {}
    for path, target in model.lora_aliases().items():
        shape = model.weights.shapes[target.weight]
        if path.endswith(".attn1.to_q") and target.rows is None:
            name = "lora_unet_" + path.replace(".", "_")
            made = oracles.trained(algorithm, (shape[0], shape[1])).tensors
            tensors |= {f"{name}.{end}": value.clone().contiguous() for end, value in made.items()}
    save_file(tensors, folder / "lora.safetensors")
    component = Component("sd15", model.weights.shapes, model.lora_aliases(), model.weights.map)
    found = load_lora(read_lora(folder / "lora.safetensors"), {"model": component})
    assert found.receipt.complete and found.receipt.matched
    return found


@pytest.mark.parametrize("algorithm", oracles.ALGORITHMS)
def test_rows_with_any_algebra(algorithm: str, model: DiffusionModel, tmp_path: Path) -> None:
    source = loaded(tmp_path, algorithm, model).model
    shapes = {name: s for name, s in model.weights.shapes.items() if ".attn" in name and len(s) == 2}
    other = plain_lora("other", shapes)
    runs = Runs()
    runs.held(model, [(PatchUse(source, 0.7),), other.at(0.5), (PatchUse(source, 0.3),), other.at(0.2)])
    has_factors = all(p.factors() is not None for patches in source.patches().values() for p in patches)
    assert has_factors == (algorithm in BESIDE)
    said = [str((runs.said[row] or {})["loras"]) for row in range(4)]
    assert all("beside the weights, each for its rows" in said[row] for row in (1, 3))
    for row in (0, 2):
        assert ("has no factors" not in said[row]) == has_factors
    assert runs.calls == ([4] * 3 if has_factors else [1] * 3 + [2] * 3 + [1] * 3)
