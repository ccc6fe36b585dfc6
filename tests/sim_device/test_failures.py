"""Any allocation of a run may fail: what was asked for comes nevertheless, or an error that says that it was
the memory; what is resident afterwards is whole, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraloom.errors import OutOfMemory
from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import (
    open_checkpoint,
    open_diffusion_model,
    open_picture_encoder,
    open_text_encoders,
)
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt
from loraloom.models.upscaling import open_upscaler
from loraloom.nodes.picture_styles import encode_pictures
from loraloom.runtime.previews import Previews
from loraloom.sampling.guidance import CFG
from loraloom.sampling.run import sample
from loraloom.sampling.samplers.registry import method
from loraloom.sampling.schedules import sigmas_for
from loraloom.sampling.types import Cond
from loraloom.session import NodeFailure, Session
from loraloom.training.train import train
from loraloom.workflow.graph import JSON
from tests import tiny_models as tiny
from tests.models.plain_loras import plain_lora
from tests.models.test_tiny_autoencoder import halves, written
from tests.nodes.runs import run_on
from tests.nodes.test_picture_styles import write_encoder
from tests.nodes.test_upscale import compact_weights
from tests.sim_device.device import NAME, Real, Sim
from tests.sim_device.test_parts import OWN_PROCESS
from tests.sim_device.test_streaming import ACTIVATIONS, MARGIN, result, styled
from tests.sim_device.test_streaming import small_margin as small_margin
from tests.training.conftest import MakeSettings
from tests.training.conftest import checkpoint as checkpoint
from tests.training.conftest import make_settings as make_settings
from tests.training.conftest import pictures as pictures

Work: TypeAlias = Callable[[Memory], Tensor]

NOWHERE = ModelFolders(())
POINTS = [3, pytest.param(200, marks=[pytest.mark.heavy, pytest.mark.timeout(3000)])]
"""How many of a run's allocations fail, each in a run of its own: evenly spread, or nearly all."""


def drawn(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1))


def texts(folder: Path) -> Work:
    """With a LoRA on both encoders."""
    paths = (tiny.write_clip_l(folder / "clip_l.safetensors"), tiny.write_t5(folder / "t5.safetensors"))
    plain = open_text_encoders(paths, "flux")
    shapes = {n: s for part in plain.parts for n, s in part.weights.shapes.items() if "layer" in n}
    lora = plain_lora("one", {name: shape for name, shape in shapes.items() if len(shape) == 2})

    def work(memory: Memory) -> Tensor:
        found = [
            encode_prompt(memory, clip, "a (rose:1.2)", NOWHERE)[0][0].context
            for clip in (plain, plain.with_lora(lora.at(0.3)[0]))
        ]
        return torch.cat(found)

    return work


def patching(folder: Path) -> Work:
    """Strengths and LoRAs, low-rank ones and others, on weights of 8 bits."""
    path = tiny.write_flux(folder / "flux.safetensors")
    model = open_diffusion_model(path, "fp8_e4m3fn")
    shapes = {n: s for n, s in model.weights.shapes.items() if len(s) == 2 and "blocks" in n}
    dense = model.with_lora(plain_lora("two", shapes, dense=True).at(0.2)[0])

    def work(memory: Memory) -> Tensor:
        return torch.cat([result(memory, one) for one in (styled(model), dense, model)])

    return work


def pictures_seen(folder: Path) -> Work:
    encoder = open_picture_encoder(write_encoder(folder / "encoder.safetensors", "clip"))

    def work(memory: Memory) -> Tensor:
        run = run_on(folder, memory)
        return encode_pictures(encoder, drawn(2, 48, 64, 3), "none", run=run).all_hidden_states

    return work


def upscaling(folder: Path) -> Work:
    if find_spec("spandrel") is None:
        pytest.skip("spandrel is not installed")
    save_file(compact_weights(), folder / "x2.safetensors")
    upscaler = open_upscaler(folder / "x2.safetensors")

    def work(memory: Memory) -> Tensor:
        return upscaler(drawn(2, 40, 48, 3), memory)

    return work


def previews(folder: Path) -> Work:
    """A run that shows each of its steps."""
    written(folder / "vae_approx", "taesd", "decoder", halves()[1])
    model = open_checkpoint(tiny.write_sd15(folder / "sd15.safetensors"))[0]

    def work(memory: Memory) -> Tensor:
        network, x = memory.network(model), torch.zeros(1, 4, 8, 8)
        show = Previews().of(model.latent, ModelFolders([folder]), memory, lambda message: None)
        cond = Cond(drawn(1, 7, 64), drawn(1, 64))
        with torch.inference_mode():
            steps = sample(
                network, CFG((cond,), (cond,), 1.0), latent=x, noise=drawn(1, 4, 8, 8),
                method=method("euler"), sigmas=sigmas_for(network.parametrisation, "simple", 2), seed=1,
            )  # fmt: skip
            for step in steps:
                preview = show(step)
                assert preview is not None and preview.picture().size == (64, 64)
                x = step.denoised.cpu()
        return x

    return work


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("make", [texts, patching, pictures_seen, upscaling, previews])
def test_every_allocation_may_fail(
    sim: Sim, tmp_path: Path, make: Callable[[Path], Work], points: int
) -> None:
    work, memory = make(tmp_path), Memory(NAME, "fp32")
    gc.collect()
    before = sim["live"]
    sim.reset()
    wanted = work(memory)
    count, errors = sim["allocations"], 0
    for number in range(0, count, max(1, count // points)):
        memory.release()
        gc.collect()  # of what the run itself leaves, as transformers' modules do
        assert sim["live"] == before
        with sim.failing(number):
            try:
                torch.testing.assert_close(work(memory), wanted, rtol=1e-3, atol=1e-3)
            except OutOfMemory:
                errors += 1
        torch.testing.assert_close(work(memory), wanted, rtol=1e-3, atol=1e-3)
    assert errors < max(3, points // 10)  # nearly every failure is got over


@pytest.mark.parametrize(
    "points", [3, pytest.param(60, marks=[pytest.mark.heavy, pytest.mark.timeout(3000)])]
)
def test_every_allocation_of_a_training_may_fail(
    device: Sim | Real, points: int, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """It ends with an error that says it, and goes on from its last saved state to the same LoRA. In a
    process of its own, as all trainings on a device that comes late."""
    if OWN_PROCESS not in os.environ:
        name = f"{__file__}::test_every_allocation_of_a_training_may_fail[{points}]"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", name]
        own = {**os.environ, OWN_PROCESS: "1"}
        done = subprocess.run(command, env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        return
    assert isinstance(device, Sim)

    def trained(folder: Path) -> Tensor:
        made = make_settings(steps=2)
        found = train(replace(made, run=replace(made.run, device=NAME, save_every=1), output=folder))
        return torch.cat([value.flatten() for value in load_file(found.lora).values()])

    device.reset()
    wanted = trained(tmp_path / "whole")
    count, errors = device["allocations"], 0
    for number in range(0, count, max(1, count // points)):
        with device.failing(number):
            try:
                found = trained(tmp_path / str(number))
            except OutOfMemory as error:
                assert "memory" in str(error)
                errors += 1
                found = None
        if found is None:
            found = trained(tmp_path / str(number))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert errors


def test_a_failed_allocation_while_a_module_is_completed_leaves_nothing(sim: Sim, tmp_path: Path) -> None:
    """Buffers that no file holds come last; what was filled before them goes at once."""
    model = open_checkpoint(tiny.write_sd15(tmp_path / "sd15.safetensors"))[1]
    assert model is not None
    memory = Memory(NAME, "fp32")
    sim.reset()
    memory.text(model)
    count = sim["allocations"]
    memory.release()
    gc.collect()
    before = sim["live"]
    gc.disable()
    try:
        for number in range(count - 3, count):
            with sim.failing(number):
                memory.text(model)
            memory.release()
            assert sim["live"] == before
    finally:
        gc.enable()


def test_a_resident_is_halved_beside_what_runs_beside_it(sim: Sim, tmp_path: Path) -> None:
    """LoRAs beside weights of 8 bits take more than half of what there is, and yet layers can leave."""
    path = tiny.write(tmp_path / "flux.safetensors", tiny.flux_shapes(double=4, single=8), torch.bfloat16)
    model: DiffusionModel = open_diffusion_model(path, "fp8_e4m3fn")
    shapes = {n: s for n, s in model.weights.shapes.items() if len(s) == 2 and "blocks" in n}
    for number in range(40):
        model = model.with_lora(plain_lora(f"lora {number}", shapes).at(0.05)[0])
    memory = Memory(NAME, "fp32")
    wanted = result(memory, model)
    whole = memory.resident_bytes
    steps = 0
    while memory.give_way(*memory._residents):  # pyright: ignore[reportPrivateUsage]
        steps += 1
        assert steps < 20
    ((_, resident),) = memory._residents.values()  # pyright: ignore[reportPrivateUsage]
    assert resident.nbytes == resident.least < whole
    assert resident.streaming is not None and resident.streaming.streamed > 0
    memory.budget = resident.least + MARGIN + 2 * ACTIVATIONS
    torch.testing.assert_close(result(memory, model), wanted, rtol=1e-4, atol=1e-4)
    memory.release()


SMALL = 1 << 16
"""Bytes of a latent, its noise and a prompt."""
GRAPH: dict[str, JSON] = {
    "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": "a rose"}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "sample": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["base", 0], "positive": ["prompt", 0], "negative": ["prompt", 0],
            "latent_image": ["latent", 0], "seed": 1, "steps": 2, "cfg": 7.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 1.0,
        },
    },
    "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["base", 2]}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "a"}},
}  # fmt: skip


def test_a_run_that_fails_for_memory_leaves_nothing_to_the_next(
    sim: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker has it: the next job finds the device as it was, whenever Python collects. Who keeps the
    error keeps no step's memory with it."""
    (tmp_path / "checkpoints").mkdir()
    tiny.write_sd15(tmp_path / "checkpoints/sd15.safetensors")
    attend = torch.nn.functional.scaled_dot_product_attention

    def full(query: Tensor, *given: Tensor, **named: object) -> Tensor:
        found = attend(query, *given, **named)  # pyright: ignore[reportArgumentType]
        if query.shape[-2] == 16:  # of the network's middle, not of a text encoder
            raise torch.OutOfMemoryError("as often as it is asked")
        return found

    with Session(tmp_path, output_dir=tmp_path / "output", device=NAME, dtype="fp32") as session:
        wanted = session.run(GRAPH, seed=3).images[0].tobytes()
        gc.collect()
        gc.disable()
        try:
            besides = sim["live"] - session.memory.resident_bytes
            with monkeypatch.context() as patch:
                patch.setattr(torch.nn.functional, "scaled_dot_product_attention", full)
                with pytest.raises(NodeFailure, match="not enough memory") as kept:
                    session.run(GRAPH, seed=4)
            assert sim["live"] - session.memory.resident_bytes <= besides + SMALL
            del kept
            assert sim["live"] - session.memory.resident_bytes <= besides + SMALL
            session.forget()
            assert session.run(GRAPH, seed=3).images[0].tobytes() == wanted
        finally:
            gc.enable()
