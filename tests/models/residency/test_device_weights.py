"""What waits in the host's memory for a device. No GPU: pinning itself is torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.models.residency import device_weights
from loraloom.models.residency.device_weights import DeviceWeights
from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile


@pytest.fixture
def source(tmp_path: Path) -> WeightSource:
    torch.manual_seed(0)
    stored = {
        "plain.weight": torch.randn(4, 8, dtype=torch.float16),
        "packed.weight": torch.randn(4, 8).to(torch.float8_e4m3fn),
        "packed.scale_weight": torch.tensor(0.5),
        "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn),
    }
    save_file(stored, tmp_path / "weights.safetensors")
    return WeightSource.of_file(TensorFile(tmp_path / "weights.safetensors"))


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors that are pinned: copies, as torch makes them."""
    made: list[Tensor] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        made.append(tensor.clone())
        return made[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    return made


def kept(source: WeightSource, device: str = "cuda") -> DeviceWeights:
    return DeviceWeights(source, torch.device(device), lambda: 0)


def test_quantised_weights_are_pinned_as_stored(source: WeightSource, pinned: list[Tensor]) -> None:
    weights, before = kept(source), source.packed("packed.weight")
    assert before is not None
    weights.pin("packed.weight")
    weights.pin("packed.weight")
    held = weights.packed("packed.weight")
    assert held is not None and len(pinned) == len(held.parts) == 2
    assert all(any(part is one for one in pinned) for part in held.parts.values())
    assert torch.equal(held.widened(torch.float32), before.widened(torch.float32))


def test_plain_weights_are_pinned(source: WeightSource, pinned: list[Tensor]) -> None:
    kept(source).pin("plain.weight")
    assert len(pinned) == 1 and torch.equal(pinned[0], source.map("plain.weight"))


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_fetch_nothing_by_themselves(
    source: WeightSource, pinned: list[Tensor], device: str
) -> None:
    for native in ("plain.weight", "packed.weight"):
        kept(source, device).pin(native)
    assert not pinned


def test_where_memory_is_short_nothing_is_pinned(
    source: WeightSource, pinned: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_weights, "available_memory", lambda device: 10)
    kept(source).pin("packed.weight")
    assert not pinned


@pytest.mark.parametrize("native", ["plain.weight", "packed.weight"])
def test_what_cannot_be_pinned_is_fetched_as_it_is(
    source: WeightSource, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system bounds such memory by other rules than free memory says."""

    def refused(tensor: Tensor) -> Tensor:
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(Tensor, "pin_memory", refused)
    kept(source).pin(native)
