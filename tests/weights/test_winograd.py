"""A quarter of the products, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from loraloom.weights import winograd
from loraloom.weights.less_work import with_less_work


@pytest.mark.parametrize(
    ("sides", "batch"), [((4, 4), 1), ((8, 12), 2), ((92, 8), 1), ((36, 20), 3), ((64, 64), 1)]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution(
    sides: tuple[int, int], batch: int, bias: bool, order: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 6, *sides).contiguous(memory_format=order)
    kernel = torch.randn(5, 6, 3, 3).contiguous(memory_format=order)
    added = torch.randn(5) if bias else None
    expected = F.conv2d(x.double(), kernel.double(), added if added is None else added.double(), padding=1)
    given = winograd.convolved(x, kernel, added)
    assert given.shape == expected.shape and given.is_contiguous(memory_format=torch.channels_last)
    assert (given - expected).abs().max() < 1e-5 * expected.abs().max()


def test_it_is_nearly_as_exact_as_a_convolution() -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(1, 256, 16, 16), torch.randn(256, 256, 3, 3) / 48
    exact = F.conv2d(x.double(), kernel.double(), padding=1)

    def off(given: torch.Tensor) -> float:
        return float((given - exact).norm() / exact.norm())

    assert off(winograd.convolved(x, kernel, None)) < 3e-6
    assert off(F.conv2d(x, kernel, padding=1)) < 3e-6


@pytest.mark.parametrize(
    ("channels", "sides", "dtype", "is_used"),
    [
        (192, (64, 32), torch.float32, True),
        (128, (64, 32), torch.float32, False),
        (192, (32, 28), torch.float32, False),
        (192, (64, 34), torch.float32, False),
        (192, (64, 32), torch.bfloat16, False),
    ],
)
def test_layers_use_it_where_it_saves_time(
    channels: int, sides: tuple[int, int], dtype: torch.dtype, is_used: bool
) -> None:
    layer = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)).to(dtype)
    x = torch.zeros(1, channels, *sides, dtype=dtype)
    plain = 2 * 9 * x.numel() * channels
    with_less_work(layer)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    work = counter.get_total_flops()
    assert (work < 0.6 * plain) if is_used else (work == plain)
