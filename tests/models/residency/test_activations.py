"""What computing is said to take is what it takes: peaks of live tensors on narrow networks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import (
    open_checkpoint,
    open_diffusion_model,
    open_picture_encoder,
    open_text_encoders,
)
from loraloom.models.handles import DiffusionModel
from loraloom.models.picture_encoders import see, tokens_of
from loraloom.models.residency import residents as residents_module
from loraloom.models.residency.activations import (
    DECODER_MAPS,
    ENCODER_MAPS,
    hidden_width,
    picture_bytes,
    sequence_numbers,
)
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, SampleContext
from tests import tiny_models as tiny
from tests.nodes.test_picture_styles import write_encoder


class Peak(TorchDispatchMode):
    """The most bytes of tensors made within that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                place = storage.data_ptr()
                if place not in self._alive:
                    self._alive[place] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.bytes = max(self.bytes, self._now)
                    weakref.finalize(storage, self._gone, place)
        return out

    def _gone(self, place: int) -> None:
        self._now -= self._alive.pop(place)


def sd15(folder: Path) -> tuple[DiffusionModel, Cond]:
    return open_checkpoint(tiny.write_sd15(folder / "sd15.safetensors"))[0], Cond(torch.randn(1, 77, 64))


def flux(folder: Path) -> tuple[DiffusionModel, Cond]:
    model = open_diffusion_model(tiny.write_flux(folder / "flux.safetensors"))
    return model, Cond(torch.randn(1, 64, 64), torch.zeros(1, 64))


@pytest.mark.parametrize("make", [sd15, flux])
@pytest.mark.parametrize(("batch", "side"), [(1, 16), (1, 48), (3, 32)])
def test_a_step(
    make: Callable[[Path], tuple[DiffusionModel, Cond]],
    batch: int,
    side: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[int] = []
    monkeypatch.setattr(Memory, "_reserve", lambda _, needed, *rest: said.append(needed))
    model, cond = make(tmp_path)
    network = Memory("cpu", "fp32").network(model)
    x = torch.randn(batch, model.family.latents.channels, side, side)
    with torch.inference_mode():
        inputs = Inputs.joined([network.inputs(cond, SampleContext(x, x))], batch)
        network(x, torch.zeros(batch), inputs)  # loads the weights
        with Peak() as peak:
            network(x, torch.zeros(batch), inputs)
    assert peak.bytes <= said[-1] <= 1.6 * peak.bytes


def test_a_picture(tmp_path: Path) -> None:
    vae = open_checkpoint(tiny.write_sd15(tmp_path / "sd15.safetensors"))[2]
    assert vae is not None
    network = Memory("cpu", "fp32").autoencoder(vae)
    width = vae.kind.width(vae.kind.module.config(vae.weights.shapes))
    latent = network.encode(torch.rand(1, 128, 192, 3))
    pixels = 128 * 192
    with Peak() as decoding:
        picture = network.decode(latent)
    with Peak() as encoding:
        network.encode(picture)
    for peak, maps in ((decoding, DECODER_MAPS), (encoding, ENCODER_MAPS)):
        assert peak.bytes <= picture_bytes(width, pixels, 4, maps) <= 2 * peak.bytes


LONG = "a rose in the (morning:1.3) light of a narrow street, " * 20


@pytest.mark.parametrize("kind", ["stable_diffusion", "chroma"])
def test_a_prompt(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = tiny.clip_shapes(inner=256) if kind == "stable_diffusion" else tiny.t5_shapes(inner=160)
    clip = open_text_encoders((tiny.write(tmp_path / "text.safetensors", shapes, torch.float16),), kind)
    said: list[int] = []
    monkeypatch.setattr(Memory, "_reserve", lambda _, needed, *rest, **named: said.append(needed))
    memory = Memory("cpu", "fp32")
    encode_prompt(memory, clip, LONG, ModelFolders(()))  # loads the weights
    with Peak() as peak:
        encode_prompt(memory, clip, LONG, ModelFolders(()))
    assert peak.bytes <= max(said) <= 4 * peak.bytes


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_picture_that_is_seen(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_picture_encoder(write_encoder(tmp_path / "eyes.safetensors", kind, grid=16))
    said: list[int] = []
    monkeypatch.setattr(Memory, "_reserve", lambda _, needed, *rest, **named: said.append(needed))
    memory, pixels = Memory("cpu", "fp32"), torch.rand(1, 3, 16 * 14, 16 * 14)
    width = encoder.weights.shapes["vision_model.embeddings.patch_embedding.weight"][0]
    states = tokens_of(encoder) * width * 4 * 4  # two layers' and their stack, which are the host's

    def seen(module: nn.Module) -> int:
        with torch.inference_mode(), Peak() as peak:
            see(module, pixels)
        return peak.bytes

    peak = memory.with_pictures(encoder, lambda m: sequence_numbers(m, 1, tokens_of(encoder)), seen)
    assert peak - states <= said[-1] <= 4 * peak


def test_the_width_is_the_side_that_most_matrices_have() -> None:
    assert hidden_width({"a": (9216, 3072), "b": (3072, 15360), "c": (64, 3072), "d": (3072,)}) == 3072
    assert hidden_width({}) == 0


def test_others_leave_for_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory("cpu", "fp32")
    model, text, vae = open_checkpoint(tiny.write_sd15(tmp_path / "sd15.safetensors"))
    assert text is not None and vae is not None
    network, x = memory.network(model), torch.randn(1, 4, 16, 16)
    memory.text(text)
    memory.autoencoder(vae).decode(torch.zeros(1, 4, 8, 8))
    free = [1 << 40]
    monkeypatch.setattr(residents_module, "available_memory", lambda device: free[0])

    @torch.inference_mode()
    def step(batch: int = 1) -> None:
        wide = x.expand(batch, -1, -1, -1)
        inputs = network.inputs(Cond(torch.randn(1, 77, 64)), SampleContext(wide, wide))
        network(wide, torch.zeros(batch), Inputs.joined([inputs], batch))

    step(3)
    assert memory.resident_kinds == ("text", "autoencoder", "network")
    free[0] = 600_000  # one step is said to take a little under 1 MB
    with pytest.raises(torch.OutOfMemoryError, match=r"about 0\.00 GB needed"):
        step(3)
    assert memory.resident_kinds == ("network",)
    step()  # the figure is an estimate: what cannot be split is tried
    free[0] = 60_000
    with pytest.raises(torch.OutOfMemoryError):
        step()
    with torch.enable_grad():
        memory._reserve(1 << 50, 1, None)  # pyright: ignore[reportPrivateUsage]
    assert memory.resident_kinds == ("network",)
