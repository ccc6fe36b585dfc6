"""comfy-kitchen behind int8 products, by the code that it runs without a GPU."""

from __future__ import annotations

import pytest
import torch

from loraloom.weights import integers, kernels
from loraloom.weights.formats import formats
from loraloom.weights.packed import packed_as


def test_without_cuda_nothing_is_asked_of_it() -> None:
    x = torch.zeros(2, 4)
    assert not kernels.is_usable(x)
    assert kernels.int8_linear(x, torch.zeros(4, 4, dtype=torch.int8), torch.ones(4, 1), 0) is None


@pytest.mark.parametrize("option", ["", "convrot64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_its_products_are_ours(option: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("comfy_kitchen")
    torch.manual_seed(0)
    packed = packed_as(formats()["int8"], torch.randn(24, 128), option)
    assert packed is not None
    x = torch.randn(2, 5, 128, dtype=dtype)
    ours = packed.product(x, native=True)
    monkeypatch.setattr(kernels, "is_usable", lambda x: True)
    assert torch.equal(packed.product(x, native=True), ours)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 30, 7), (17, 64, 8), (40, 33, 5)])
def test_sizes_that_cublas_refuses_are_filled_up(rows: int, inputs: int, outputs: int) -> None:
    x = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    found = integers._on_cuda(x, weight)  # pyright: ignore[reportPrivateUsage]
    assert torch.equal(found.long(), x.long() @ weight.long().T)
