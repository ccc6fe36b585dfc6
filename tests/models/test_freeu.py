"""FreeU: which features it touches, and that it leaves the network as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.freeu import FreeU, damp_low_frequencies
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.nodes import model_sampling
from loraloom.sampling.inputs import Inputs, Tokens
from tests import tiny_models
from tests.families.bench import narrow_models


@pytest.fixture
def model(tmp_path: Path) -> DiffusionModel:
    found, _, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    assert found is not None
    return found


def test_low_frequencies_are_damped_as_a_shifted_spectrum_says() -> None:
    features = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(1))
    spectrum = torch.fft.fftshift(torch.fft.fftn(features, dim=(-2, -1)), dim=(-2, -1))
    spectrum[..., 3:5, 2:4] *= 0.2
    expected = torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=(-2, -1)), dim=(-2, -1)).real
    torch.testing.assert_close(damp_low_frequencies(features, 0.2), expected)
    torch.testing.assert_close(damp_low_frequencies(features, 1.0), features)


def output(model: DiffusionModel, memory: Memory) -> torch.Tensor:
    network = memory.network(model)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    context = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return network(x, torch.tensor([500.0]), Inputs({"context": Tokens(context)}))


@pytest.mark.parametrize("node", [model_sampling.free_u, model_sampling.free_u_adaptive])
def test_the_output_changes_and_comes_back(
    model: DiffusionModel, node: Callable[..., DiffusionModel]
) -> None:
    memory = Memory("cpu", "fp32")
    plain = output(model, memory)
    assert not torch.allclose(output(node(model), memory), plain, atol=1e-3)
    torch.testing.assert_close(output(node(model, 1.0, 1.0, 1.0, 1.0), memory), plain, rtol=1e-3, atol=1e-4)
    assert torch.equal(output(model, memory), plain)


@pytest.mark.parametrize("node", [model_sampling.free_u, model_sampling.free_u_adaptive])
def test_a_transformer_is_refused(tmp_path: Path, node: Callable[..., DiffusionModel]) -> None:
    transformer = open_diffusion_model(narrow_models()["z_image"].network().write(tmp_path / "z.safetensors"))
    with pytest.raises(InputError, match="network of Z-Image is a transformer"):
        node(transformer)


def test_it_acts_by_the_width_of_the_features() -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), cross_attention_dim=8)
    settings = FreeU(1.1, 1.2, 0.9, 0.2)
    found = [join[1:] for join in settings._joins(unet)]  # pyright: ignore[reportPrivateUsage]
    assert found == [(128, 1.1, 0.9)] * 7 + [(64, 1.2, 0.2)] * 3
    assert not any(resnet._forward_pre_hooks for block in unet.up_blocks for resnet in block.resnets)
    with settings.on(unet):
        assert sum(len(r._forward_pre_hooks) for block in unet.up_blocks for r in block.resnets) == 10
    assert not any(resnet._forward_pre_hooks for block in unet.up_blocks for resnet in block.resnets)
