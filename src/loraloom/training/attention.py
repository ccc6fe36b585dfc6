"""Attention whose backward pass is quick, too.

PyTorch's attention on a CPU goes back through bfloat16 in blocks that narrow heads leave nearly empty: half
of a training step of a small network. In float32 the same takes 0.1 to 0.8 of the time for heads of at most
32 channels, there and back together, and is no less exact; for wider ones it takes longer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.attention import AttentionCalls

NARROW = 32
"""Channels of a head up to which float32 is quicker."""


def attention_for_training(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context in which a network is trained on a device, computing in a type."""
    return _Widened() if device.type == "cpu" and dtype == torch.bfloat16 else nullcontext()


class _Widened(AttentionCalls):
    """Computes narrow heads in float32."""

    def attend(self, *args: Any, **kwargs: Any) -> Any:
        compute = F.scaled_dot_product_attention
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.is_floating_point()]
        if any(t.dtype != torch.bfloat16 or t.shape[-1] > NARROW for t in tensors[:3]):
            return compute(*args, **kwargs)
        wide = compute(*map(_float, args), **{name: _float(value) for name, value in kwargs.items()})
        return wide.to(torch.bfloat16)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
