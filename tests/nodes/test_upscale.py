"""Upscale models on a small network in a real file format."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.errors import InputError, ModelFileError
from loraloom.models.residency import residents
from loraloom.models.residency.memory import Memory
from loraloom.models.upscaling import open_upscaler
from loraloom.nodes import upscale
from tests.no_memory import Fail, both_kinds
from tests.nodes.runs import PlainRun

HOST = Memory("cpu", "fp32")
needs_spandrel = pytest.mark.skipif(find_spec("spandrel") is None, reason="spandrel is not installed")


def compact_weights(features: int = 8, convolutions: int = 2, scale: int = 2) -> dict[str, Tensor]:
    """Real-ESRGAN's compact network (Wang et al. 2021): convolutions and PReLUs, then a pixel shuffle."""
    generator = torch.Generator().manual_seed(1)
    widths = [3, *[features] * (convolutions + 1), 3 * scale**2]
    weights: dict[str, Tensor] = {}
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        place = f"body.{2 * index}"
        weights[f"{place}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * 0.05
        weights[f"{place}.bias"] = torch.zeros(outputs)
        if index < len(widths) - 2:
            weights[f"body.{2 * index + 1}.weight"] = torch.full((outputs,), 0.2)
    return weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models/upscale_models/tiny_x2.safetensors"
    path.parent.mkdir(parents=True)
    save_file(compact_weights(), path)
    return path


@needs_spandrel
def test_a_model_enlarges_by_its_scale(model: Path, tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    loaded = upscale.load_upscale_model("tiny_x2.safetensors", run=run)
    image = torch.rand(2, 20, 30, 4, generator=torch.Generator().manual_seed(2))
    large = upscale.upscale_with_model(loaded, image, run=run)
    assert large.shape == (2, 40, 60, 3)
    nearest = image[..., :3].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert 0 < (large - nearest).abs().mean() < 0.2
    assert "torchvision" not in sys.modules


@needs_spandrel
def test_tiles_do_not_show(model: Path) -> None:
    loaded = open_upscaler(model)
    image = torch.rand(1, 8, 520, 3, generator=torch.Generator().manual_seed(3))
    tiled = loaded(image, HOST)
    left = loaded(image[:, :, :400], HOST)
    torch.testing.assert_close(tiled[:, :, :760], left[:, :, :760])


@needs_spandrel
@both_kinds
def test_tiles_are_as_large_as_memory_allows(
    model: Path, monkeypatch: pytest.MonkeyPatch, fail: Fail
) -> None:
    loaded = open_upscaler(model)
    image = torch.rand(1, 8, 520, 3, generator=torch.Generator().manual_seed(3))
    whole = loaded(image, HOST)
    plain, widths = loaded._one, list[int]()  # pyright: ignore[reportPrivateUsage]

    def short(tile: Tensor, device: torch.device) -> Tensor:
        widths.append(tile.shape[-1])
        if tile.shape[-1] > 128:
            fail()
        return plain(tile, device)

    monkeypatch.setattr(loaded, "_one", short)
    torch.testing.assert_close(loaded(image, HOST), whole, atol=1e-3, rtol=0)
    assert widths[:3] == [512, 256, 128]
    widths.clear()
    smallest = loaded._bytes(8, 128)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(residents, "available_memory", lambda device: smallest * 2 // 3)
    torch.testing.assert_close(loaded(image, HOST), whole, atol=1e-3, rtol=0)
    assert max(widths) == 128  # the figure is an estimate
    monkeypatch.setattr(residents, "available_memory", lambda device: smallest // 3)
    with pytest.raises(torch.OutOfMemoryError, match="GB needed"):
        loaded(image, HOST)


@needs_spandrel
def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ModelFileError, match="no upscale model"):
        open_upscaler(path)
    path.with_suffix(".pth").write_bytes(b"\x80\x02")
    with pytest.raises(ModelFileError, match="pickle"):
        open_upscaler(path.with_suffix(".pth"))


@pytest.mark.skipif(find_spec("spandrel") is not None, reason="spandrel is installed")
def test_the_missing_package_is_named(model: Path) -> None:
    with pytest.raises(InputError, match="pip install --no-deps spandrel einops"):
        open_upscaler(model)
