"""What is no diffusion network keeps to the budget, too: text encoders, language models that see and write,
picture encoders, upscale models, autoencoders, the decoders of previews. What they give is the same."""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.errors import OutOfMemory
from loraloom.folders import ModelFolders
from loraloom.models import upscaling
from loraloom.models.checkpoint import (
    open_autoencoder,
    open_checkpoint,
    open_picture_encoder,
    open_text_encoders,
)
from loraloom.models.families.sd15.family import FAMILY as SD15
from loraloom.models.handles import TextEncoders
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt
from loraloom.models.text.generate import Question, generate_text
from loraloom.models.text.templates import PICTURE
from loraloom.models.upscaling import open_upscaler
from loraloom.nodes.picture_styles import encode_pictures
from loraloom.runtime.previews import Previews
from loraloom.sampling.types import Step
from tests import narrow_models as wide
from tests import tiny_models as tiny
from tests.conftest import NarrowFile
from tests.models.plain_loras import plain_lora
from tests.models.test_tiny_autoencoder import halves, written
from tests.nodes.runs import run_on
from tests.nodes.test_picture_styles import write_encoder
from tests.nodes.test_upscale import compact_weights
from tests.sim_device.device import NAME, Sim
from tests.sim_device.test_streaming import MARGIN, result, styled
from tests.sim_device.test_streaming import small_margin as small_margin

SHARES = [
    pytest.param(share, marks=[] if share in (0.05, 0.5, 2.0) else [pytest.mark.heavy])
    for share in (0.05, 0.1, 0.25, 0.5, 0.9, 1.2, 2.0)
]
NOWHERE = ModelFolders(())
LONG = "a rose in the (morning:1.3) light of a narrow street, " * 30
"""Activations of several megabytes, where the margin is half of one."""
needs_spandrel = pytest.mark.skipif(find_spec("spandrel") is None, reason="spandrel is not installed")


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * max(1.0, float(wanted.std())))


class Sizes(Memory):
    """A memory that notes what is asked of it to compute in."""

    asked = 0

    def has_room(self, needed: int, *given: object, **named: object) -> bool:
        self.asked = max(self.asked, needed)
        return super().has_room(needed, *given, **named)  # pyright: ignore[reportArgumentType]


def holds(sim: Sim, share: float, work: Callable[[Memory], Tensor]) -> Memory:
    """Work gives on the device what it gives on the CPU, within a share of its weights and what it says that
    it takes beside them; the memory in which it did."""
    wanted = work(Memory("cpu", "fp32"))
    whole = Sizes(NAME, "fp32")
    near(work(whole), wanted)
    least = sum(resident.least for _, resident in whole._residents.values())  # pyright: ignore[reportPrivateUsage]
    weights, computing = whole.resident_bytes, whole.asked
    assert computing > 2 * MARGIN
    whole.release()
    gc.collect()
    budget, before = max(int(share * weights), least) + 2 * MARGIN + computing, sim["live"]
    memory = Memory(NAME, "fp32", budget=budget)
    sim.reset()
    for _ in range(2):
        near(work(memory), wanted)
    over = sim["peak"] - before - budget
    assert over <= 0, f"{over} bytes over {budget}, of which {computing} to compute"
    assert sim["live"] - before <= memory.resident_bytes
    return memory


@pytest.fixture(scope="module")
def flux_encoders(tmp_path_factory: pytest.TempPathFactory) -> TextEncoders:
    """Deep enough that layers count beside the tables of tokens, which stay."""
    folder = tmp_path_factory.mktemp("encoders")
    clip = tiny.write(folder / "clip_l.safetensors", tiny.clip_shapes(layers=12, inner=512), torch.float16)
    t5 = tiny.write(folder / "t5.safetensors", tiny.t5_shapes(layers=12, inner=512), torch.float16)
    return open_text_encoders((clip, t5), "flux")


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("is_styled", [False, True])
def test_text_encoders(sim: Sim, flux_encoders: TextEncoders, is_styled: bool, share: float) -> None:
    clip = flux_encoders
    if is_styled:
        shapes = {n: s for part in clip.parts for n, s in part.weights.shapes.items() if "layer" in n}
        lora = plain_lora("one", {name: shape for name, shape in shapes.items() if len(shape) == 2})
        clip = clip.with_lora(lora.at(0.3)[0])

    def work(memory: Memory) -> Tensor:
        (cond,), _ = encode_prompt(memory, clip, LONG, NOWHERE)
        return cond.context

    memory = holds(sim, share, work)
    memory.release()


@pytest.mark.parametrize("share", SHARES)
def test_language_models_that_see_and_write(sim: Sim, narrow_file: NarrowFile, share: float) -> None:
    clip = open_text_encoders((narrow_file(wide.write_qwen3vl_4b),), "krea2")
    shown = torch.rand(1, 320, 480, 3, generator=torch.Generator().manual_seed(1))

    def work(memory: Memory) -> Tensor:
        (cond,), _ = encode_prompt(memory, clip, f"{PICTURE}make it winter", NOWHERE, [shown])
        text = generate_text(memory, clip, Question("What is it?", pictures=(shown,)), NOWHERE, 6)
        return torch.cat([cond.context.flatten(), torch.tensor([float(ord(letter)) for letter in text])])

    holds(sim, share, work).release()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_picture_encoders(sim: Sim, tmp_path: Path, kind: str, share: float) -> None:
    path = write_encoder(tmp_path / "encoder.safetensors", kind, grid=24, layers=8)
    encoder = open_picture_encoder(path)
    pictures = torch.rand(5, 64, 48, 3, generator=torch.Generator().manual_seed(1))

    def work(memory: Memory) -> Tensor:
        return encode_pictures(encoder, pictures, "none", run=run_on(tmp_path, memory)).last_hidden_state

    holds(sim, share, work).release()


@needs_spandrel
@pytest.mark.parametrize("share", SHARES)
def test_upscale_models(sim: Sim, tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is there whole, and tiles are as large as there is room for: shares of the largest."""
    monkeypatch.setattr(upscaling, "TILE", 128)
    monkeypatch.setattr(upscaling, "SMALLEST_TILE", 32)
    monkeypatch.setattr(upscaling, "OVERLAP", 8)
    save_file(compact_weights(features=24, convolutions=6), tmp_path / "x2.safetensors")
    upscaler = open_upscaler(tmp_path / "x2.safetensors")
    image = torch.rand(2, 200, 160, 3, generator=torch.Generator().manual_seed(1))
    wanted = upscaler(image, Memory("cpu", "fp32"))
    gc.collect()
    before, size = sim["live"], upscaler._size  # pyright: ignore[reportPrivateUsage]
    largest = upscaler._bytes(128, 128)  # pyright: ignore[reportPrivateUsage]
    budget = size + int(share * largest) + (MARGIN if share > 1 else 0)
    memory = Memory(NAME, "fp32", budget=budget)
    sim.reset()
    if upscaler._bytes(32, 32) > 2 * share * largest:  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(torch.OutOfMemoryError, match=r"GB needed"):
            upscaler(image, memory)
    else:
        for _ in range(2):
            torch.testing.assert_close(upscaler(image, memory), wanted, rtol=0, atol=2e-3)
    assert sim["peak"] - before <= budget
    memory.release()
    assert upscaler.held == 0 and sim["live"] == before


@needs_spandrel
def test_an_upscale_model_counts_until_another_needs_the_room(sim: Sim, tmp_path: Path) -> None:
    save_file(compact_weights(features=64, convolutions=16), tmp_path / "x2.safetensors")
    upscaler = open_upscaler(tmp_path / "x2.safetensors")
    model = open_checkpoint(tiny.write_sd15(tmp_path / "sd15.safetensors"))[0]
    image = torch.rand(1, 32, 32, 3)
    gc.collect()
    before = sim["live"]
    memory = Memory(NAME, "fp32")
    wanted = result(memory, model)
    network = memory.resident_bytes
    memory.budget = network + upscaler._size + upscaler._bytes(32, 32) + 2 * MARGIN  # pyright: ignore[reportPrivateUsage]
    upscaler(image, memory)
    assert upscaler.held > MARGIN
    assert sim["live"] - before == upscaler.held + memory.resident_bytes
    assert memory.has_room(memory.budget - network - MARGIN, kept="another")
    assert upscaler.held == 0 and memory.resident_kinds == ("network",)
    assert torch.equal(result(memory, model), wanted)
    memory.release()


@pytest.mark.parametrize("share", SHARES)
def test_autoencoders(sim: Sim, tmp_path: Path, share: float) -> None:
    vae = open_autoencoder(tiny.write_vae(tmp_path / "vae.safetensors"))
    image = torch.rand(1, 192, 256, 3, generator=torch.Generator().manual_seed(1))

    def work(memory: Memory) -> Tensor:
        network = memory.autoencoder(vae)
        return torch.cat([(latent := network.encode(image)).flatten(), network.decode(latent).flatten()])

    holds(sim, share, work).release()


def test_a_decoder_of_previews_counts_and_gives_way_to_colours(sim: Sim, tmp_path: Path) -> None:
    written(tmp_path / "vae_approx", "taesd", "decoder", halves()[1])
    model = styled(open_checkpoint(tiny.write_sd15(tmp_path / "sd15.safetensors"))[0])
    denoised = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    step = Step(0, denoised, denoised.to(NAME), torch.tensor(1.0))
    pictures: list[bytes] = []
    for room in (0, 1 << 30):
        gc.collect()
        before = sim["live"]
        memory, previews = Memory(NAME, "fp32"), Previews()
        result(memory, model)
        without = sim["live"]
        show = previews.of(SD15.latents, ModelFolders([tmp_path]), memory, print)
        preview = show(step)
        assert preview is not None and preview.decoder is not None
        assert preview.decoder.held == sim["live"] - without > 0
        memory.budget = memory.resident_bytes + preview.decoder.held + MARGIN + room
        sim.reset()
        pictures.append(preview.picture(method="taesd").tobytes())
        assert sim["peak"] - before <= memory.budget
        pictures.append(preview.picture(method="latent2rgb").tobytes())
        memory.release()
        del previews, show, preview
    (short, mixed, whole, again) = pictures
    assert short == mixed == again != whole


def test_what_fits_in_no_way_says_so_with_figures(sim: Sim, flux_encoders: TextEncoders) -> None:
    memory = Memory(NAME, "fp32", budget=2 * MARGIN)
    with pytest.raises(OutOfMemory, match=r"text encoder.*GB"):
        encode_prompt(memory, flux_encoders, LONG, NOWHERE)
    assert memory.resident_bytes == 0
