"""What is in memory: sharing, switching, making room, refusing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError, OutOfMemory
from loraloom.models.checkpoint import open_autoencoder, open_checkpoint, open_diffusion_model
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency import residents as residents_module
from loraloom.models.residency.memory import Memory
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, Network, SampleContext
from tests import tiny_models as tiny
from tests.models.plain_loras import plain_lora

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(2))
WEIGHT = "middle_block.1.transformer_blocks.0.attn1.to_v.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sd15(tmp_path_factory.mktemp("models") / "sd15.safetensors")


@torch.inference_mode()
def run(network: Network, x: Tensor = X, cond: Cond | None = None) -> Tensor:
    inputs = network.inputs(cond or Cond(CONTEXT), SampleContext(x, x))
    return network(x, torch.full((len(x),), 500.0), Inputs.joined([inputs], len(x)))


def model_of(path: Path) -> DiffusionModel:
    return open_checkpoint(path)[0]


def test_networks_share_a_base_and_keep_their_own_stacks(checkpoint: Path) -> None:
    memory = Memory("cpu", "fp32")
    model = model_of(checkpoint)
    lora = plain_lora("v", {WEIGHT: model.weights.shapes[WEIGHT]})
    plain, styled = memory.network(model), memory.network(model.with_lora(lora.at(1.0)[0]))
    first, other = run(plain), run(styled)
    held = memory.resident_bytes
    assert not torch.allclose(first, other)
    assert torch.equal(run(plain), first)
    assert torch.equal(run(styled), other)
    assert memory.resident_bytes == held


def test_released_networks_load_again(checkpoint: Path) -> None:
    memory = Memory("cpu", "fp32")
    network = memory.network(model_of(checkpoint))
    before = run(network)
    memory.release()
    assert memory.resident_bytes == 0
    assert torch.equal(run(network), before)


def test_the_least_used_leaves_first_and_text_before_all(checkpoint: Path, tmp_path: Path) -> None:
    memory = Memory("cpu", "fp32")
    model, text, vae = open_checkpoint(checkpoint)
    assert text is not None and vae is not None
    autoencoder, network = memory.autoencoder(vae), memory.network(model)
    run(network)
    autoencoder.decode(torch.zeros(1, 4, 8, 8))
    without_text = memory.resident_bytes
    memory.text(text)
    everything = memory.resident_bytes
    memory.budget = everything + residents_module.MARGIN
    other = memory.autoencoder(
        open_autoencoder(tiny.write_vae(tmp_path / "vae.safetensors", dtype=torch.float16))
    )
    other.decode(torch.zeros(1, 4, 8, 8))
    assert memory.resident_kinds == ("network", "autoencoder", "autoencoder")
    memory.budget = everything - without_text + residents_module.MARGIN
    memory.text(text)
    assert memory.resident_kinds == ("text",)


def test_what_does_not_fit_is_refused_with_figures(checkpoint: Path) -> None:
    memory = Memory("cpu", "fp32", budget=residents_module.MARGIN)
    with pytest.raises(
        OutOfMemory, match=r"sd15\.safetensors: the network needs 0\.\d\d GB as float32.*available"
    ):
        run(memory.network(model_of(checkpoint)))
    assert memory.resident_bytes == 0


@pytest.mark.parametrize("name", ["fp8", "float32", ""])
def test_unknown_types_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="type to compute in"):
        Memory("cpu", name)  # pyright: ignore[reportArgumentType]


def test_fp16_arithmetic_is_not_offered_on_the_cpu() -> None:
    with pytest.raises(InputError, match="fp16"):
        Memory("cpu", "fp16")
    with pytest.raises(InputError, match="no device"):
        Memory("toaster", "fp32")


def test_bf16_is_close_to_fp32(checkpoint: Path) -> None:
    exact, rounded = (run(Memory("cpu", dtype).network(model_of(checkpoint))) for dtype in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.03


def test_weight_dtype_narrows_the_storage(tmp_path: Path) -> None:
    path = tiny.write_flux(tmp_path / "flux.safetensors")
    sizes = {}
    for dtype in ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"):
        memory = Memory("cpu", "fp32")
        network = memory.network(open_diffusion_model(path, dtype))
        cond = Cond(CONTEXT, torch.zeros(1, 64))
        assert run(network, torch.zeros(1, 16, 4, 4), cond).isfinite().all()
        sizes[dtype] = memory.resident_bytes
    assert sizes["fp8_e5m2"] == sizes["fp8_e4m3fn"] == sizes["fp8_e4m3fn_fast"] < 0.3 * sizes["default"]


def test_a_round_trip_through_the_autoencoder(checkpoint: Path) -> None:
    vae = open_checkpoint(checkpoint)[2]
    assert vae is not None
    autoencoder = Memory("cpu", "fp32").autoencoder(vae)
    image = torch.rand(2, 67, 72, 3)
    latent = autoencoder.encode(image)
    assert latent.shape == (2, 4, 8, 9)
    assert torch.equal(latent, autoencoder.encode(image))
    torch.testing.assert_close(autoencoder.encode(image[:, 1:65]), latent)
    decoded = autoencoder.decode(latent)
    assert decoded.shape == (2, 64, 72, 3)
    assert decoded.min() >= 0 and decoded.max() <= 1
