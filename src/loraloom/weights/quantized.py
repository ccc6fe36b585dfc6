"""Linear layers whose weights stay in 8 bits in memory and are widened when used.

y = (W x) · scale + bias + up (down x): the scale of the storage is applied to the output, where it costs
nothing, and a LoRA beside the weight keeps what rounding it into 8 bits would lose.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STORAGE_TYPES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
"""Types that weights may stay in; nothing is computed in them."""


class QuantizedLinear(nn.Module):
    """A linear layer around an 8-bit weight (out, in), or a plain one while it carries merged weights.

    scale: float32, of one element or (out,); None: 1. low_rank: down (R, in) and up (out, R).
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.scale: Tensor | None = None
        self.low_rank: tuple[Tensor, Tensor] | None = None

    @classmethod
    def like(cls, linear: nn.Linear) -> QuantizedLinear:
        """The same layer on the same device, without its values."""
        with linear.weight.device:
            return cls(linear.in_features, linear.out_features, "bias" in dict(linear.named_parameters()))

    def forward(self, x: Tensor) -> Tensor:
        weight = widened(self.weight, x.dtype)
        if self.scale is None:
            y = F.linear(x, weight, self.bias)
        else:
            y = F.linear(x, weight) * self.scale.to(x.dtype)
            if self.bias is not None:
                y = y + self.bias
        if self.low_rank is not None:
            down, up = self.low_rank
            y = y + F.linear(F.linear(x, down), up)
        return y


def widened(values: Tensor, dtype: torch.dtype) -> Tensor:
    """8-bit values in a type to compute in, exactly; others are converted as usual.

    On CPUs the bits of E4M3 are moved to their places in the wider type, whose exponent then is off by
    a constant factor of 2^120: several times as fast as the conversion element by element."""
    if values.dtype != torch.float8_e4m3fn or values.device.type != "cpu" or dtype not in _PLACES:
        return values.to(dtype)
    integer, shift, mask = _PLACES[dtype]
    bits = values.view(torch.int8).to(integer)
    return bits.bitwise_left_shift_(shift).bitwise_and_(mask).view(dtype).mul_(2.0**120)


_PLACES = {
    torch.bfloat16: (torch.int16, 4, -0x8000 | 0x07F0),
    torch.float32: (torch.int32, 20, -0x80000000 | 0x07F00000),
}
"""Type → integer of its width, and where the exponent and mantissa of E4M3 belong in it."""


def join_low_rank(
    factors: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Several (down, up) as one, ranks concatenated; None for none."""
    pairs = list(factors)
    if not pairs:
        return None
    down = torch.cat([down.to(dtype) for down, _ in pairs])
    up = torch.cat([up.to(dtype) for _, up in pairs], dim=1)
    return down, up
