"""Samplers, LoRA algebras, storage formats, hooks, previews and training, on the device."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from loraloom.models.checkpoint import open_autoencoder, open_checkpoint, open_diffusion_model
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.resident import Resident
from loraloom.sampling.guidance import CFG
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.noise import initial_noise
from loraloom.sampling.run import completed, sample
from loraloom.sampling.samplers.registry import method, sampler_names
from loraloom.sampling.schedules import sigmas_for
from loraloom.sampling.types import Cond, SampleContext
from loraloom.training.train import train
from loraloom.weights.integers import exact_product, integer_product
from loraloom.weights.patch import PatchUse
from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile
from tests import tiny_models as tiny
from tests.lora import oracles
from tests.models.plain_loras import plain_lora
from tests.models.test_quantised_algebras import BLUEPRINT, FORMATS, lora_of, results, written
from tests.sim_device.device import IS_SIM, NAME, Real, Sim, assert_near
from tests.training.conftest import MakeSettings
from tests.training.conftest import checkpoint as checkpoint
from tests.training.conftest import make_settings as make_settings
from tests.training.conftest import pictures as pictures

OWN_PROCESS = "LORALOOM_TEST_IN_OWN_PROCESS"
X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
POSITIVE, NEGATIVE = (
    (Cond(torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(seed))),) for seed in (2, 3)
)


@pytest.fixture(scope="module")
def memories(device: Sim | Real) -> dict[str, Memory]:
    """Of the CPU and of the device."""
    return {"cpu": Memory("cpu", "fp32"), "there": Memory(NAME, "fp32")}


def sampled(memory: Memory, path: Path, name: str) -> Tensor:
    network = memory.network(open_checkpoint(path)[0])
    sampler = method(name)
    sigmas = sigmas_for(network.parametrisation, "karras", 4, method=sampler)
    latent = torch.zeros_like(X)
    with torch.inference_mode():
        steps = sample(
            network,
            CFG(POSITIVE, NEGATIVE, 4.0),
            latent=latent,
            noise=initial_noise(latent, 5),
            method=sampler,
            sigmas=sigmas,
            seed=5,
        )
        return completed(steps).latent


@pytest.mark.parametrize("name", [name for name in sampler_names() if not name.endswith("_gpu")])
def test_samplers(memories: dict[str, Memory], checkpoint: Path, name: str) -> None:
    """Those that draw noise on the device ("_gpu") have no reference: its generators are its own."""
    cpu, there = (sampled(memory, checkpoint, name) for memory in memories.values())
    assert there.device.type == "cpu"
    assert_near(there, cpu, rtol=1e-3, atol=1e-3 * float(cpu.std()))


@pytest.mark.parametrize("algorithm", oracles.ALGORITHMS)
@pytest.mark.parametrize("to", FORMATS)
def test_algebras_on_storage_formats(device: Sim | Real, to: str, algorithm: str, tmp_path: Path) -> None:
    source = written(tmp_path, to)
    stack = (PatchUse(lora_of(tmp_path, algorithm, source).model, 0.7),)
    x, tokens = torch.randn(5, 128), torch.tensor([[3, 190], [3, 0]])
    found: dict[str, list[dict[str, Tensor]]] = {}
    for name in ("cpu", NAME):
        resident = Resident(BLUEPRINT, source, dtype=torch.float32, device=torch.device(name))
        found[name] = []
        for wanted in ((), stack, ()):
            resident.apply(wanted)
            found[name].append(results(resident, x.to(name), tokens.to(name)))
    for cpu, there in zip(found["cpu"], found[NAME], strict=True):
        for name, value in there.items():
            assert_near(value.cpu(), cpu[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", oracles.ALGORITHMS)
def test_algebras_on_plain_weights(device: Sim | Real, algorithm: str, tmp_path: Path) -> None:
    shapes = {f"{name}.weight": (192, 128) for name in ("fused", "whole", "table")}
    path = tiny.write(tmp_path / "plain.safetensors", {**shapes, "fused.bias": (192,)}, torch.float32)
    source = WeightSource.of_file(TensorFile(path))
    stack = (PatchUse(lora_of(tmp_path, algorithm, source).model, 0.7),)
    cpu, there = (
        Resident(BLUEPRINT, source, dtype=torch.float32, device=torch.device(name), spare=lambda: 1 << 40)
        for name in ("cpu", NAME)
    )
    for wanted in (stack, (), stack):
        cpu.apply(wanted)
        there.apply(wanted)
        for one, other in zip(cpu.module.parameters(), there.module.parameters(), strict=True):
            assert other.device.type == torch.device(NAME).type
            assert_near(other.detach().cpu(), one.detach(), rtol=1e-5, atol=1e-5)
            if wanted == ():
                assert torch.equal(other.detach().cpu(), one.detach())


@pytest.mark.parametrize("columns", [48, 1024, 3000])
def test_products_of_integers_are_the_cpus(device: Sim | Real, columns: int) -> None:
    """To the bit, also where integers are multiplied as floats because the device has no other way."""
    drawn = torch.Generator().manual_seed(columns)
    x = torch.randn(19, columns, generator=drawn)
    weight = torch.randint(-128, 128, (24, columns), generator=drawn, dtype=torch.int8)
    weight[0], x[0] = -128, -1.0
    scale = torch.rand(24, 1, generator=drawn)
    found = integer_product(x.to(NAME), weight.to(NAME), scale.to(NAME))
    assert_near(found.cpu(), integer_product(x, weight, scale), rtol=1e-6 * (not IS_SIM), atol=0)
    there = exact_product(weight.to(NAME), weight.to(NAME))
    assert torch.equal(there.cpu(), exact_product(weight, weight))


@pytest.mark.parametrize("dense", [False, True])
def test_loras_of_single_conditionings(memories: dict[str, Memory], checkpoint: Path, dense: bool) -> None:
    model = open_checkpoint(checkpoint)[0]
    lora = plain_lora(
        "hook", {n: s for n, s in model.weights.shapes.items() if dense or len(s) == 2}, dense=dense
    ).at(0.02)

    def run(memory: Memory) -> Tensor:
        network = memory.network(model, (lora,))
        sigmas = sigmas_for(network.parametrisation, "simple", 2)
        steps = sample(
            network, CFG(POSITIVE, NEGATIVE, 2.0), latent=X * 0, noise=X, method=method("euler"),
            sigmas=sigmas, seed=1,
        )  # fmt: skip
        return completed(steps).latent

    with torch.inference_mode():
        cpu, there = (run(memory) for memory in memories.values())
    assert_near(there, cpu, rtol=1e-3, atol=1e-3 * float(cpu.std()))


def test_loras_of_single_rows(memories: dict[str, Memory], checkpoint: Path) -> None:
    model = open_checkpoint(checkpoint)[0]
    shapes = {n: s for n, s in model.weights.shapes.items() if ".attn" in n or ".op." in n}
    a, b, c = (plain_lora(name, {n: s for n, s in shapes.items() if len(s) > 1}) for name in "abc")
    stacks = (a.at(0.1), b.at(-0.1), a.at(0.2) + c.at(0.1), ())

    def run(memory: Memory) -> Tensor:
        network = memory.network(model, stacks)
        inputs = network.inputs(POSITIVE[0], SampleContext(noise=X, latent=X)).mapped(
            lambda tensor: tensor.to(memory.device)
        )
        rows = Inputs.joined([inputs] * 4)
        time = torch.full((4,), 500.0, device=memory.device)
        return network(X[:1].repeat(4, 1, 1, 1).to(memory.device), time, rows).cpu()

    with torch.inference_mode():
        cpu, there = (run(memory) for memory in memories.values())
    assert_near(there, cpu, rtol=1e-3, atol=1e-3 * float(cpu.std()))
    assert float((cpu[0] - cpu[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_narrow_storage(memories: dict[str, Memory], tmp_path: Path, weight_dtype: str) -> None:
    model = open_diffusion_model(tiny.write_flux(tmp_path / "flux.safetensors"), weight_dtype)
    given = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    found = {}
    for name, memory in memories.items():
        module = memory.resident_module(model)
        found[name] = module.get_submodule("context_embedder")(given.to(memory.device)).cpu()
    assert_near(found["there"], found["cpu"], rtol=1e-5 * (not IS_SIM), atol=0)  # of float32, never in 8 bits


def test_autoencoder_and_previews(memories: dict[str, Memory], checkpoint: Path, tmp_path: Path) -> None:
    vae = open_autoencoder(tiny.write_vae(tmp_path / "vae.safetensors"))
    image = torch.rand(2, 64, 72, 3)
    coded = {name: memory.autoencoder(vae).encode(image) for name, memory in memories.items()}
    assert_near(coded["there"], coded["cpu"], rtol=1e-4, atol=1e-4)
    shown = {name: memory.autoencoder(vae).decode(coded["cpu"]) for name, memory in memories.items()}
    assert_near(shown["there"], shown["cpu"], rtol=1e-4, atol=1e-4)
    tiled = {name: m.autoencoder(vae).decode_tiled(coded["cpu"], 64, 16) for name, m in memories.items()}
    assert_near(tiled["there"], tiled["cpu"], rtol=1e-4, atol=1e-4)


def test_training(device: Sim | Real, make_settings: MakeSettings, tmp_path: Path) -> None:
    """In a process of its own: autograd takes no devices that come after its first use."""
    if OWN_PROCESS not in os.environ:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"{__file__}::test_training"]
        done = subprocess.run(command, env={**os.environ, OWN_PROCESS: "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        return
    trained: dict[str, dict[str, Tensor]] = {}
    for name in ("cpu", NAME):
        made = make_settings(steps=2)
        settings = replace(made, run=replace(made.run, device=name), output=tmp_path / name)
        trained[name] = load_file(train(settings).lora)
    cpu, there = (torch.cat([value.flatten() for value in found.values()]) for found in trained.values())
    close = torch.isclose(there, cpu, rtol=1e-2, atol=1e-4)
    assert close.float().mean() > 0.98  # the first steps take the sign of gradients near zero, too
