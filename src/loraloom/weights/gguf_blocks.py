"""The values of GGUF's blocks, with torch on any device; types that are rare go through the `gguf` package.

The layouts are those of ggml (`ggml-common.h`); the results are those of the package bit for bit. d and m are
a block's scale and offset (float16); blocks of 256 values have scales of their own for 16 or 32 values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from loraloom.weights.dtypes import DTYPES
from loraloom.weights.gguf_names import BLOCK_SIZES, PLAIN

Blocks: TypeAlias = Tensor
"""(n, bytes of a block), uint8."""

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of IQ4_NL and IQ4_XS stand for."""


def dequantised(stored: Tensor, kind: str) -> Tensor:
    """Bytes (…, bytes of a row) of a type → values (…, columns), float32."""
    if kind in _PLAIN:
        return stored.contiguous().view(_PLAIN[kind]).float()
    values, width = BLOCK_SIZES[kind]
    blocks = stored.reshape(-1, width)
    make = _TORCH.get(kind)
    found = _by_package(blocks, kind) if make is None else make(blocks)
    return found.reshape(*stored.shape[:-1], stored.shape[-1] // width * values)


def _by_package(blocks: Blocks, kind: str) -> Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    found: Any = dequantize(blocks.cpu().numpy(), GGMLQuantizationType[kind])
    return torch.from_numpy(found).to(blocks.device)


def _half(blocks: Blocks, begin: int) -> Tensor:
    """A float16 of each block (n, 1)."""
    return blocks[:, begin : begin + 2].contiguous().view(torch.float16).float()


def _nibbles(stored: Tensor) -> Tensor:
    """(n, k) → (n, 2k): first all low halves, then all high ones."""
    return torch.cat([stored & 15, stored >> 4], 1)


def _fields(stored: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """(n, …) → (n, shifts, …): the bits at each shift."""
    steps = torch.tensor(shifts, dtype=torch.uint8, device=stored.device)
    return stored[:, None] >> steps.reshape(1, -1, *[1] * (stored.dim() - 1)) & mask


def _fifth_bits(blocks: Blocks, begin: int) -> Tensor:
    """32 bits, one for each value: (n, 32)."""
    bits = _fields(blocks[:, begin : begin + 4], tuple(range(8)), 1)
    return bits.transpose(1, 2).flatten(1)


def _q8_0(blocks: Blocks) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(blocks: Blocks) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Blocks) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Blocks) -> Tensor:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2) << 4
    return _half(blocks, 0) * (codes.float() - 16)


def _q5_1(blocks: Blocks) -> Tensor:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4) << 4
    return _half(blocks, 0) * codes.float() + _half(blocks, 2)


def _q2_k(blocks: Blocks) -> Tensor:
    scales = blocks[:, :16]
    scale = _half(blocks, 80) * (scales & 15).float()
    offset = _half(blocks, 82) * (scales >> 4).float()
    codes = _fields(blocks[:, 16:80].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)  # (n, 4, 2, 32)
    codes = codes.transpose(1, 2).reshape(-1, 16, 16).float()
    return scale[..., None] * codes - offset[..., None]


def _q3_k(blocks: Blocks) -> Tensor:
    packed = blocks[:, 96:108]
    low = torch.cat([packed[:, :8] & 15, packed[:, :8] >> 4], 1)
    high = _fields(packed[:, 8:], (0, 2, 4, 6), 3).flatten(1)
    scale = _half(blocks, 108) * ((low | high << 4).view(torch.int8) - 32).float()
    codes = _fields(blocks[:, 32:96].unflatten(1, (2, 32)), (0, 2, 4, 6), 3).transpose(1, 2)
    above = _fields(blocks[:, :32], tuple(range(8)), 1).unflatten(1, (2, 4))
    signed = codes.float() - 4 * (1 - above.float())
    return scale[..., None] * signed.reshape(-1, 16, 16)


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight offsets of 6 bits from 12 bytes, of Q4_K and Q5_K."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, rest & 15 | first >> 2 & 48], 1)
    offsets = torch.cat([second & 63, rest >> 4 | second >> 2 & 48], 1)
    return scales.float(), offsets.float()


def _q4_k(blocks: Blocks, codes: Tensor | None = None) -> Tensor:
    scales, offsets = _k_scales(blocks[:, 4:16])
    scale, offset = _half(blocks, 0) * scales, _half(blocks, 2) * offsets
    if codes is None:
        codes = _pairs(blocks[:, 16:])
    return scale[..., None] * codes.float() - offset[..., None]


def _pairs(stored: Tensor) -> Tensor:
    """128 bytes → (n, 8, 32): of each 32 bytes the low halves, then the high ones."""
    return _fields(stored.unflatten(1, (4, 32)), (0, 4), 15).transpose(1, 2).reshape(-1, 8, 32)


def _q5_k(blocks: Blocks) -> Tensor:
    above = _fields(blocks[:, 16:48], tuple(range(8)), 1)
    return _q4_k(blocks, _pairs(blocks[:, 48:]) | above << 4)


def _q6_k(blocks: Blocks) -> Tensor:
    low = _fields(blocks[:, :128].unflatten(1, (2, 64)), (0, 4), 15).transpose(1, 2).reshape(-1, 8, 32)
    high = _fields(blocks[:, 128:192].unflatten(1, (2, 32)), (0, 2, 4, 6), 3).transpose(1, 2)
    codes = (low | high.reshape(-1, 8, 32) << 4).reshape(-1, 16, 16).view(torch.int8) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return scale[..., None] * codes.float()


def _table(blocks: Tensor) -> Tensor:
    return torch.tensor(IQ4, dtype=torch.float32, device=blocks.device)


def _iq4_nl(blocks: Blocks) -> Tensor:
    return _half(blocks, 0) * _table(blocks)[_nibbles(blocks[:, 2:]).int()]


def _iq4_xs(blocks: Blocks) -> Tensor:
    high = _fields(blocks[:, 2:4], (0, 2, 4, 6), 3).transpose(1, 2).flatten(1)
    low = _fields(blocks[:, 4:8], (0, 4), 15).transpose(1, 2).flatten(1)
    scale = _half(blocks, 0) * ((low | high << 4).view(torch.int8) - 32).float()
    codes = _fields(blocks[:, 8:].unflatten(1, (8, 16)), (0, 4), 15).transpose(1, 2).reshape(-1, 8, 32)
    return scale[..., None] * _table(blocks)[codes.int()]


_PLAIN = {name: DTYPES[name] for name in PLAIN}

_TORCH: Mapping[str, Callable[[Blocks], Tensor]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip
