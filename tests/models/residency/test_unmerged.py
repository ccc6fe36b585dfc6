"""LoRAs beside a network's weights give what merged ones give, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.computing import Computing
from loraloom.models.difference import ModelDifference
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.sampling.types import Cond, Network, SampleContext
from loraloom.weights.patch import PatchUse, Stack
from tests import tiny_models
from tests.models.plain_loras import plain_lora


@pytest.fixture
def sd15(tmp_path: Path) -> DiffusionModel:
    return open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))[0]


@pytest.fixture
def flux(tmp_path: Path) -> DiffusionModel:
    return open_diffusion_model(tiny_models.write_flux(tmp_path / "flux.safetensors"))


def run(network: Network) -> Tensor:
    channels = network.latent_channels
    x = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(2))
    cond = Cond(torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(3)))
    inputs = network.inputs(cond, SampleContext(noise=x, latent=x))
    with torch.no_grad():
        return network(x, torch.tensor([0.5 if channels == 16 else 500.0]), inputs)


def stack(shapes: Mapping[str, tuple[int, ...]], dense: bool, strength: float) -> Stack:
    return (PatchUse(plain_lora(f"lora {dense}", shapes, dense=dense), strength),)


def assert_beside_equals_merged(model: DiffusionModel, uses: Stack) -> None:
    memory, merged = Memory("cpu", "fp32"), model
    plain = run(memory.network(model))
    beside = run(memory.network(model, (uses,)))
    assert torch.equal(run(memory.network(model)), plain)
    for use in uses:
        merged = merged.with_lora(use)
    changed = run(memory.network(merged))
    assert not torch.allclose(changed, plain, atol=1e-2)
    torch.testing.assert_close(beside, changed, rtol=1e-3, atol=1e-3 * float(changed.std()))


@pytest.mark.parametrize("strength", [0.5, -0.3])
def test_factored_changes_of_linear_layers(sd15: DiffusionModel, strength: float) -> None:
    shapes = {
        name: shape for name, shape in sd15.weights.shapes.items() if ".attn" in name and len(shape) == 2
    }
    assert_beside_equals_merged(sd15, stack(shapes, False, strength))


def test_compiled_blocks_do_not_hide_changes(sd15: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code knows the layers as they were when it was made."""

    def compile_eagerly(module: torch.nn.Module) -> None:
        for block in module.modules():
            if type(block).__name__ == "BasicTransformerBlock":
                block.compile(backend="eager")

    monkeypatch.setattr("loraloom.models.residency.memory.check_compiler", lambda device: None)
    monkeypatch.setattr("loraloom.models.residency.residents.compile_blocks", compile_eagerly)
    memory = Memory("cpu", "fp32", computing=Computing(compiled=True))
    plain = run(memory.network(sd15))
    shapes = {name: s for name, s in sd15.weights.shapes.items() if ".attn" in name and len(s) == 2}
    beside = run(memory.network(sd15, (stack(shapes, False, 0.5),)))
    merged = run(Memory("cpu", "fp32").network(sd15.with_lora(stack(shapes, False, 0.5)[0])))
    assert not torch.allclose(beside, plain, atol=1e-2)
    torch.testing.assert_close(beside, merged, rtol=1e-3, atol=1e-3 * float(merged.std()))
    torch.testing.assert_close(run(memory.network(sd15)), plain, rtol=1e-5, atol=1e-6)


def test_whole_changes_of_every_kind_of_layer(sd15: DiffusionModel) -> None:
    shapes = {name: shape for name, shape in sd15.weights.shapes.items() if shape}
    assert {len(shape) for shape in shapes.values()} == {1, 2, 4}
    assert_beside_equals_merged(sd15, stack(shapes, True, 0.02))


def test_layers_that_the_file_fuses(flux: DiffusionModel) -> None:
    shapes = {
        name: s for name, s in flux.weights.shapes.items() if "qkv.weight" in name or "linear1.weight" in name
    }
    assert shapes
    assert_beside_equals_merged(flux, stack(shapes, False, 0.5))
    assert_beside_equals_merged(flux, stack(shapes, True, 0.5))


def test_a_model_as_a_lora_leads_to_that_model(sd15: DiffusionModel, tmp_path: Path) -> None:
    other, _, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "other.safetensors", seed="other"))
    memory = Memory("cpu", "fp32")
    use = PatchUse(ModelDifference(sd15.weights, other.weights), 1.0)
    wanted = run(memory.network(other))
    found = run(memory.network(sd15, ((use,),)))
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3 * float(wanted.std()))


def test_a_model_of_another_kind_is_refused(sd15: DiffusionModel, flux: DiffusionModel) -> None:
    with pytest.raises(InputError, match="another kind"):
        ModelDifference(sd15.weights, flux.weights).patches()
