"""Attention while training: the numbers of PyTorch's own, and at least as near to exact ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.training.attention import NARROW, attention_for_training

CPU = torch.device("cpu")


def drawn(width: int, dtype: torch.dtype) -> list[Tensor]:
    given = torch.Generator().manual_seed(width)
    return [
        torch.randn(2, 3, length, width, generator=given).to(dtype).requires_grad_() for length in (20, 9, 9)
    ]


def result(tensors: list[Tensor], mask: Tensor | None) -> tuple[Tensor, ...]:
    query, key, value = tensors
    out = F.scaled_dot_product_attention(query, key, value=value, attn_mask=mask)
    weights = torch.linspace(-1, 1, out.shape[-1]).to(out.dtype)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [8, NARROW, 2 * NARROW])
def test_narrow_heads_are_computed_in_float32(width: int, masked: bool) -> None:
    tensors = drawn(width, torch.bfloat16)
    mask = torch.linspace(-2, 0, 9, dtype=torch.bfloat16).expand(20, 9) if masked else None
    plain = result(tensors, mask)
    exact = result(
        [t.detach().double().requires_grad_() for t in tensors], mask if mask is None else mask.double()
    )
    with attention_for_training(CPU, torch.bfloat16):
        found = result(tensors, mask)
    assert all(t.dtype == torch.bfloat16 for t in found)
    if width > NARROW:
        assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
        return
    for one, before, wanted in zip(found, plain, exact, strict=True):
        assert (one - wanted).norm() <= 1.05 * (before - wanted).norm()


def test_other_types_are_left_alone() -> None:
    tensors = drawn(8, torch.float32)
    with attention_for_training(CPU, torch.float32):
        found = result(tensors, None)
    assert all(torch.equal(one, other) for one, other in zip(found, result(tensors, None), strict=True))
    with attention_for_training(CPU, torch.bfloat16):
        mixed = result(tensors, None)
    assert all(torch.equal(one, other) for one, other in zip(mixed, found, strict=True))
