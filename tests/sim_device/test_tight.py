"""Real LoRA files on quantised weights that are fetched, under small budgets, and text encoders whose
allocations fail: the peak stays within the budget, and what comes out is the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.errors import OutOfMemory
from loraloom.folders import ModelFolders
from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import load_lora
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.handles import Autoencoder, DiffusionModel, TextEncoders
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.storage import weights_bytes
from loraloom.models.text.encode import encode_prompt
from loraloom.weights.patch import PatchUse
from loraloom.weights.quantise import quantise_file
from tests import tiny_models as tiny
from tests.sim_device.device import NAME, Sim
from tests.sim_device.test_streaming import ACTIVATIONS, MARGIN, result
from tests.sim_device.test_streaming import small_margin as small_margin

FORMATS = ("plain", "int8", "gguf:Q4_0", "fp8")
ALGEBRAS = ("lora", "dora", "lokr")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    shapes = tiny.flux_shapes(context=64, pooled=64, double=2, single=3)
    found = {"plain": tiny.write(folder / "flux.safetensors", shapes, torch.bfloat16)}
    for to in FORMATS[1:]:
        found[to] = folder / (to.replace(":", "_") + (".gguf" if "gguf" in to else ".safetensors"))
        quantise_file(found["plain"], to, found[to], architecture="flux")
    return found


def tensors(algebra: str, shape: tuple[int, ...], norms: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A module of a LoRA file as trainers write it: ending and value."""
    out, width = shape
    generator = torch.Generator().manual_seed(out + width)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator) / size[-1] ** 0.5

    yield "alpha", torch.tensor(2.0)
    if algebra == "lokr":
        yield "lokr_w1", 0.3 * drawn(4, 4)
        yield "lokr_w2", drawn(out // 4, width // 4)
        return
    yield "lora_down.weight", drawn(4, width)
    yield "lora_up.weight", drawn(out, 4)
    if algebra == "dora":
        yield "dora_scale", norms[:, None] * (1 + 0.1 * drawn(out, 1))


def with_lora(model: DiffusionModel, algebra: str, folder: Path) -> DiffusionModel:
    source = model.weights
    made: dict[str, Tensor] = {}
    for native, shape in source.shapes.items():
        if len(shape) == 2 and "blocks" in native and not any(side % 4 for side in shape):
            norms = source.read(native, torch.float32).norm(dim=1)
            name = "diffusion_model." + native.removesuffix(".weight")
            made |= {f"{name}.{end}": value.contiguous() for end, value in tensors(algebra, shape, norms)}
    save_file(made, folder / f"{algebra}.safetensors")
    component = Component("flux", source.shapes, {}, source.map, source.quantised)
    loaded = load_lora(read_lora(folder / f"{algebra}.safetensors"), {"model": component})
    assert loaded.receipt.complete and loaded.receipt.matched
    return model.with_lora(PatchUse(loaded.model, 0.7))


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("to", FORMATS)
def test_loras_on_fetched_weights(
    sim: Sim, files: dict[str, Path], to: str, algebra: str, tmp_path: Path
) -> None:
    base = open_diffusion_model(files[to])
    model = with_lora(base, algebra, tmp_path)
    cpu, whole = Memory("cpu", "fp32"), Memory(NAME, "fp32")
    wanted = [result(whole, one) for one in (base, model)]
    for one, found in zip((base, model), wanted, strict=True):  # inputs that are rounded may round otherwise
        assert off(found, result(cpu, one)) < (0.03 if to == "int8" else 1e-4)
    whole.release()
    size = weights_bytes(base.weights, torch.float32, "quantized")
    for share in (0.05, 0.3):
        gc.collect()
        before = sim["live"]
        budget = int(share * size) + MARGIN + 3 * ACTIVATIONS
        memory = Memory(NAME, "fp32", budget=budget)
        sim.reset()
        for number in (1, 0, 1):
            assert off(result(memory, (base, model)[number]), wanted[number]) < 1e-4
            assert sim["live"] - before <= memory.resident_bytes <= budget
        over = sim["peak"] - before - budget
        assert over <= 0, f"{over} bytes over {budget} at {share}"
        memory.release()
        gc.collect()
        assert sim["live"] == before


@pytest.fixture
def three(tmp_path: Path) -> tuple[DiffusionModel, TextEncoders, Autoencoder]:
    path = tiny.write_sd15(tmp_path / "sd15.safetensors")
    model, clip, vae = open_checkpoint(path)
    assert clip is not None and vae is not None
    return model, clip, vae


Three = tuple[DiffusionModel, TextEncoders, Autoencoder]


def test_allocations_that_fail_in_text_encoders(sim: Sim, three: Three) -> None:
    """The network, which was used before, leaves; and what is encoded is the same."""
    model, clip, _ = three
    memory = Memory(NAME, "fp32")

    def encoded() -> Tensor:
        (cond,), _ = encode_prompt(memory, clip, "a rose", ModelFolders(()))
        return cond.context

    result(memory, model)
    sim.reset()
    wanted = encoded()
    count, errors = sim["allocations"], 0
    for number in range(0, count, max(1, count // 12)):
        memory.release()
        result(memory, model)
        with sim.failing(number):
            try:
                torch.testing.assert_close(encoded(), wanted)
            except OutOfMemory:
                errors += 1
        torch.testing.assert_close(encoded(), wanted)
    assert errors == 0
