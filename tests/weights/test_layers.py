"""Layers around quantised weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from loraloom.weights.layers import PackedLinear, join_low_rank, packed_layer
from loraloom.weights.packed import Packed
from loraloom.weights.storage.fp8 import widened_floats

EVERY_BYTE = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_finite_value_is_widened_exactly(stored: torch.dtype, dtype: torch.dtype) -> None:
    values = EVERY_BYTE.view(stored)
    finite = values.float().isfinite()
    assert int(finite.sum()) >= 248
    assert torch.equal(widened_floats(values, dtype)[finite], values.to(dtype)[finite])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "scale", [None, torch.tensor([0.25]), torch.rand(6) + 0.5], ids=["no", "one", "rows"]
)
def test_forward_is_that_of_the_widened_weight(bias: bool, scale: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    layer = packed_layer(torch.nn.Linear(8, 6, bias=bias), torch.float32, native=True)
    assert isinstance(layer, PackedLinear)
    stored = torch.randn(6, 8).to(torch.float8_e4m3fn)
    parts = {"weight": stored} if scale is None else {"weight": stored, "scale": scale}
    layer.hold(Packed.of("fp8", parts, {}, (6, 8)))
    pairs = [(torch.randn(2, 8), torch.randn(6, 2)), (torch.randn(3, 8), torch.randn(6, 3))]
    layer.low_rank = join_low_rank(pairs, torch.float32)
    weight = stored.float() * (1.0 if scale is None else scale.reshape(-1, 1))
    weight = weight + sum(up @ down for down, up in pairs)
    x = torch.randn(4, 8)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-5)
