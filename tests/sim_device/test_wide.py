"""Quantised weights that are kept wide while the device has room, and what leaves first when it has not."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.computing import Computing
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.storage import weights_bytes
from tests import tiny_models as tiny
from tests.models.plain_loras import plain_lora
from tests.sim_device.device import NAME, Real, Sim
from tests.sim_device.test_streaming import ACTIVATIONS, MARGIN, result, size_of, styled
from tests.sim_device.test_streaming import narrow as narrow_model
from tests.sim_device.test_streaming import small_margin as small_margin


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    path = tiny.write_flux(tmp_path_factory.mktemp("models") / "flux.safetensors")
    return open_diffusion_model(path, "fp8_e4m3fn")


@pytest.fixture
def narrow(device: Sim | Real) -> Iterator[Memory]:
    memory = Memory(NAME, "bf16", computing=Computing(narrow_weights=True))
    yield memory
    memory.release()


def test_the_same_latent_to_the_bit_however_much_is_wide(fp8: DiffusionModel, narrow: Memory) -> None:
    models = (fp8, styled(fp8))
    wanted = [result(narrow, model) for model in models]
    least = narrow.resident_bytes
    sizes = list[int]()
    for spare in (0.0, 0.5, 5.0):
        budget = int(least * (1 + spare)) + 2 * (MARGIN + ACTIVATIONS)
        memory = Memory(NAME, "bf16", budget=budget)
        for model, expected in zip(models, wanted, strict=True):
            assert torch.equal(result(memory, model), expected)
        assert memory.resident_bytes <= budget
        sizes.append(memory.resident_bytes)
        memory.release()
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] > 2.5 * least  # 8 bits, and 16 beside them


def test_wide_copies_leave_before_any_model_does(fp8: DiffusionModel, narrow: Memory, tmp_path: Path) -> None:
    expected = result(narrow, fp8)
    other = open_checkpoint(tiny.write_sd15(tmp_path / "sd15.safetensors"))[0]
    both = narrow.resident_bytes + size_of(other) + 4 * (MARGIN + ACTIVATIONS)
    memory = Memory(NAME, "bf16", budget=both)
    assert torch.equal(result(memory, fp8), expected)
    wide = memory.resident_bytes
    assert wide > narrow.resident_bytes
    result(memory, other)
    assert memory.resident_kinds == ("network", "network")
    assert torch.equal(result(memory, fp8), expected)
    memory.release()


def test_unpatched_copies_leave_before_any_model_does(device: Sim | Real, tmp_path: Path) -> None:
    """As with SDXL: the network, its unpatched values beside it, then a decoder that needs much."""
    model = open_checkpoint(tiny.write_sd15(tmp_path / "sd15.safetensors"))[0]
    budget = 4 * size_of(model)
    memory = Memory(NAME, "fp32", budget=budget)
    result(memory, model)
    plain = memory.resident_bytes
    wanted = result(memory, styled(model))
    copied = memory.resident_bytes
    assert memory.has_room(budget - copied - MARGIN + 1000, kept="the decoder")
    assert memory.resident_kinds == ("network",)
    assert plain < memory.resident_bytes < copied - plain // 10  # the LoRA's factors stay
    assert torch.equal(result(memory, styled(model)), wanted)
    memory.release()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.5, 5.0])
def test_quantised_weights_that_a_lora_widens_count_as_wide(sim: Sim, tmp_path: Path, share: float) -> None:
    """As DoRA's and LoKr's changes do, which cannot run beside them: the budget holds, there and back."""
    narrow_model("flux", tmp_path, double=4, single=8)
    model = open_diffusion_model(tmp_path / "flux.safetensors", "fp8_e4m3fn")
    matrices = {name: shape for name, shape in model.weights.shapes.items() if len(shape) == 2}
    widening = model.with_lora(plain_lora("one", matrices, dense=True).at(0.3)[0])
    size = weights_bytes(model.weights, torch.float32, torch.float8_e4m3fn)
    budget, before = int(share * size) + MARGIN + ACTIVATIONS, sim["live"]
    memory, cpu = Memory(NAME, "fp32", budget=budget), Memory("cpu", "fp32")
    sim.reset()
    for one in (model, widening, model, widening):
        torch.testing.assert_close(result(memory, one), result(cpu, one), rtol=1e-4, atol=1e-4)
    assert sim["peak"] - before <= budget
    ((_, resident),) = memory._residents.values()  # pyright: ignore[reportPrivateUsage]
    assert resident.is_whole == (share > 4)
    result(memory, model)
    assert resident.is_whole == (share > 1)
    del resident
    memory.release()
    assert sim["live"] == before


@pytest.mark.parametrize("share", [0.3, 0.9, 1.3, 2.0, 5.0])
def test_low_rank_loras_beside_quantised_weights_count(sim: Sim, tmp_path: Path, share: float) -> None:
    """Beside those that stay, that are fetched, and that are kept wide."""
    narrow_model("flux", tmp_path, double=4, single=8)
    model = open_diffusion_model(tmp_path / "flux.safetensors", "fp8_e4m3fn")
    matrices = {name: shape for name, shape in model.weights.shapes.items() if len(shape) == 2}
    one, *others = (plain_lora(name, matrices) for name in ("one", "two", "three", "four"))
    many = model.with_lora(one.at(0.1)[0])
    for lora in others:
        many = many.with_lora(lora.at(0.1)[0])
    size = weights_bytes(model.weights, torch.float32, torch.float8_e4m3fn)
    gc.collect()
    budget, before = int(share * size) + MARGIN + 3 * ACTIVATIONS, sim["live"]
    memory, cpu = Memory(NAME, "fp32", budget=budget), Memory("cpu", "fp32")
    sim.reset()
    for made in (many, model, many):
        torch.testing.assert_close(result(memory, made), result(cpu, made), rtol=1e-4, atol=1e-4)
        held = sim["live"] - before
        assert held <= memory.resident_bytes <= budget
    assert sim["peak"] - before <= budget
    memory.release()
    assert sim["live"] == before
