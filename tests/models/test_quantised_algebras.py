"""Storage format × place (linear, fused rows, embedding) × LoRA algebra: the layer that carries the LoRA is
the widened weight with the algebra's own change, whichever way it takes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import hashes_of
from loraloom.lora.load import LoadedLora, load_lora
from loraloom.models.family import Blueprint, Placement
from loraloom.models.residency.resident import Resident
from loraloom.weights.formats import formats
from loraloom.weights.patch import PatchUse
from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile
from tests.lora import oracles
from tests.weights.gguf_writer import write_gguf
from tests.weights.test_gguf import packed as gguf_packed
from tests.weights.test_marks import mark

FORMATS = ("fp8", "int8:convrot64", "nvfp4", "mxfp8", "gguf:Q5_1")
ADDED = ("lora", "locon", "loha", "lokr", "full")
"""Algebras whose change does not depend on the weight: the oracle's own is compared too."""
SHAPE = (192, 128)
PARTS = {"q": (0, 64), "k": (64, 128), "v": (128, 192)}


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(128, 64) for _ in range(3))
        self.whole = nn.Linear(128, 192, bias=False)
        self.table = nn.Embedding(192, 128)


PLACEMENTS = {
    **{f"{name}.weight": Placement("fused.weight", (rows,)) for name, rows in PARTS.items()},
    **{f"{name}.bias": Placement("fused.bias", (rows,)) for name, rows in PARTS.items()},
    "whole.weight": Placement("whole.weight"),
    "table.weight": Placement("table.weight"),
}
BLUEPRINT = Blueprint({}, Toy, PLACEMENTS)
PLACES = ("fused", "whole", "table")


@cache
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = {f"{name}.weight": torch.randn(SHAPE, generator=generator) / 11 for name in PLACES}
    return {**found, "fused.bias": torch.randn(192, generator=generator)}


def written(folder: Path, to: str) -> WeightSource:
    name, _, option = to.partition(":")
    path = folder / "model"
    if name == "gguf":
        kinds = {key: option if value.dim() == 2 else "F32" for key, value in weights().items()}
        write_gguf(path, {key: gguf_packed(value, kinds[key]) for key, value in weights().items()})
        return WeightSource.of_file(TensorFile(path))
    tensors = {"fused.bias": weights()["fused.bias"]}
    for place in PLACES:
        made = formats()[name].pack(weights()[f"{place}.weight"], option)
        assert made is not None
        tensors |= {f"{place}.{part}": tensor.contiguous() for part, tensor in made[0].items()}
        tensors[f"{place}.comfy_quant"] = mark(**made[1])
    save_file(tensors, path)
    return WeightSource.of_file(TensorFile(path))


def lora_of(folder: Path, algorithm: str, source: WeightSource) -> LoadedLora:
    tensors: dict[str, Tensor] = {}
    for place in PLACES:
        trained = oracles.trained(algorithm, SHAPE).tensors
        tensors |= {
            f"diffusion_model.{place}.{end}": value.clone().contiguous() for end, value in trained.items()
        }
    save_file(tensors, folder / "lora.safetensors")
    component = Component("flux", source.shapes, {}, source.map, source.quantised)
    loaded = load_lora(read_lora(folder / "lora.safetensors"), {"model": component})
    assert loaded.receipt.complete and loaded.receipt.matched == len(PLACES)
    return loaded


@pytest.mark.parametrize("algorithm", oracles.ALGORITHMS)
@pytest.mark.parametrize("to", FORMATS)
def test_cell(to: str, algorithm: str, tmp_path: Path) -> None:
    source = written(tmp_path, to)
    loaded = lora_of(tmp_path, algorithm, source)
    resident = Resident(
        BLUEPRINT, source, dtype=torch.float32, device=torch.device("cpu"), arithmetic="widened"
    )
    x, tokens = torch.randn(5, 128), torch.tensor([[3, 190], [3, 0]])
    before = results(resident, x, tokens)
    resident.apply((PatchUse(loaded.model, 0.7),))
    found = results(resident, x, tokens)
    changed = {place: source.read(f"{place}.weight") for place in PLACES}
    for place in PLACES:
        stored = changed[place].clone()
        for patch in loaded.model.patches()[f"{place}.weight"]:
            changed[place] = patch.apply(changed[place], 0.7)
        if algorithm in ADDED:
            change = oracles.trained(algorithm, SHAPE).change(0.7)
            torch.testing.assert_close(changed[place], stored + change, rtol=1e-4, atol=1e-5)
    wanted = {
        name: F.linear(x, changed["fused"][begin:end], source.read("fused.bias")[begin:end])
        for name, (begin, end) in PARTS.items()
    }
    wanted |= {"whole": F.linear(x, changed["whole"]), "table": changed["table"][tokens]}
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found[name], before[name], rtol=1e-4, atol=1e-4)
    resident.apply(())
    for name, value in results(resident, x, tokens).items():
        assert torch.equal(value, before[name])
    (way,) = loaded.measured(hashes_of(loaded.file.path)).survival
    assert way.beside + way.merged == len(PLACES)


def results(resident: Resident, x: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    module = resident.module
    assert isinstance(module, Toy)
    with torch.inference_mode():
        found = {name: getattr(module, name)(x) for name in (*PARTS, "whole")}
        return {**found, "table": module.table(tokens)}
