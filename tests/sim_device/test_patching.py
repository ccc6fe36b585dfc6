"""What crosses to the device when LoRAs change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.resident import Resident
from loraloom.weights.layers import PackedLayer
from tests import tiny_models as tiny
from tests.models.plain_loras import PlainLora, PlainPatch, plain_lora
from tests.sim_device.device import NAME, Real, Sim

SLACK = 1.1


@pytest.fixture(scope="module", params=["sd15", "flux"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    folder = tmp_path_factory.mktemp("models")
    if request.param == "flux":
        return open_diffusion_model(tiny.write_flux(folder / "flux.safetensors", dtype=torch.bfloat16))
    return open_checkpoint(tiny.write_sd15(folder / "sd15.safetensors"))[0]


def lora_for(model: DiffusionModel, digest: str) -> PlainLora:
    return plain_lora(digest, {name: s for name, s in model.weights.shapes.items() if len(s) == 2})


def resident_of(model: DiffusionModel, dtype: torch.dtype, spare: bool) -> Resident:
    blueprint = model.blueprint
    return Resident(
        blueprint, model.weights, dtype=dtype, device=torch.device(NAME), spare=lambda: (1 << 40) * spare
    )


def least(model: DiffusionModel, lora: PlainLora) -> tuple[int, int]:
    """Bytes of the touched weights as stored, and of the LoRA."""
    weights = sum(model.weights.stored_bytes(native) for native in lora.held)
    patches = [patch for held in lora.held.values() for patch in held if isinstance(patch, PlainPatch)]
    return weights, sum(patch.down.nbytes + patch.up.nbytes for patch in patches)


def crossed(sim: Sim) -> int:
    return sim["to_bytes"] + sim["from_bytes"]


def test_loading_moves_the_file_once(sim: Sim, model: DiffusionModel) -> None:
    sim.reset()
    resident_of(model, torch.bfloat16, spare=False)
    assert crossed(sim) <= SLACK * model.weights.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_change_moves_the_touched_weights_once(sim: Sim, model: DiffusionModel, dtype: torch.dtype) -> None:
    resident, lora = resident_of(model, dtype, spare=False), lora_for(model, "one")
    weights, factors = least(model, lora)
    sim.reset()
    resident.apply(lora.at(1.0))
    assert crossed(sim) <= SLACK * (weights + factors)
    for strength in (0.5, -2.0):
        sim.reset()
        resident.apply(lora.at(strength))
        assert 0 < crossed(sim) <= SLACK * weights


def test_a_change_moves_nothing_where_unpatched_weights_stay(sim: Sim, model: DiffusionModel) -> None:
    resident, lora = resident_of(model, torch.float32, spare=True), lora_for(model, "one")
    fresh = resident_of(model, torch.float32, spare=False)
    resident.apply(lora.at(1.0))
    sim.reset()
    for strength in (0.5, -1.0, 0.25):
        resident.apply(lora.at(strength))
    assert crossed(sim) == 0
    fresh.apply(lora.at(0.25))
    for one, other in zip(resident.module.parameters(), fresh.module.parameters(), strict=True):
        assert torch.equal(one.detach().cpu(), other.detach().cpu())
    resident.apply(())
    base = resident_of(model, torch.float32, spare=False)
    for one, other in zip(resident.module.parameters(), base.module.parameters(), strict=True):
        assert torch.equal(one.detach().cpu(), other.detach().cpu())
    assert resident.nbytes == base.nbytes
    sim.reset()
    resident.apply(lora.at(1.0))
    fused = sum(
        model.weights.stored_bytes(n) for n in lora.held if n.endswith(("qkv.weight", "linear1.weight"))
    )
    assert crossed(sim) <= SLACK * (least(model, lora)[1] + fused)  # those are cut into pieces in the module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_rounded_once_as_on_the_cpu(
    device: Sim | Real, model: DiffusionModel, dtype: torch.dtype
) -> None:
    lora, other = lora_for(model, "one"), lora_for(model, "two")
    stack = (*lora.at(0.7), *other.at(-0.3))
    blueprint = model.blueprint
    there = resident_of(model, dtype, spare=True)
    cpu = Resident(blueprint, model.weights, dtype=dtype, device=torch.device("cpu"))
    there.apply(lora.at(1.0))
    for resident in (there, cpu):
        resident.apply(stack)
    for one, two in zip(there.module.parameters(), cpu.module.parameters(), strict=True):
        same = (one.detach().cpu() == two.detach()).float().mean()
        assert same > 0.99 if dtype != torch.float32 else torch.allclose(one.cpu(), two, atol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_a_lora_leaves_quantised_weights_without_a_copy(sim: Sim, tmp_path: Path, dense: bool) -> None:
    """What ran beside them goes; only weights that carried a change come again."""
    path = tiny.write_flux(tmp_path / "flux.safetensors", dtype=torch.float8_e4m3fn)
    model = open_diffusion_model(path, "fp8_e4m3fn")
    shapes = {name: s for name, s in model.weights.shapes.items() if len(s) == 2 and "double" in name}
    blueprint, device = model.blueprint, torch.device(NAME)
    resident, fresh = (
        Resident(blueprint, model.weights, dtype=torch.float32, device=device, storage=torch.float8_e4m3fn)
        for _ in range(2)
    )
    resident.apply(plain_lora("one", shapes, dense=dense).at(0.5))
    sim.reset()
    assert resident.apply(()) == len(shapes)
    again = sum(model.weights.stored_bytes(native) for native in shapes) if dense else 0
    assert again <= crossed(sim) <= SLACK * again
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)).to(NAME)
    for name in ("context_embedder", "x_embedder"):
        one, other = (r.module.get_submodule(name)(x) for r in (resident, fresh))
        assert torch.equal(one, other)
    state = zip(resident.module.state_dict().values(), fresh.module.state_dict().values(), strict=True)
    assert all(torch.equal(one.cpu(), other.cpu()) for one, other in state)
    layers = [layer for layer in resident.module.modules() if isinstance(layer, PackedLayer)]
    assert layers and all(layer.low_rank is None and layer.packed is not None for layer in layers)
