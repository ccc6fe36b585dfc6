"""Model files in the real shapes of published ones (`published.py`), with random weights.

Matrices and kernels are drawn so that what goes through them keeps its size; norms are ones, biases zero.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from math import prod, sqrt
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from loraloom.weights.dtypes import DTYPES
from tests.published import Fixture

BLOCK = 1 << 22
"""Values that are drawn; larger tensors repeat them."""


def write_random(path: Path, fixture: Fixture, stored: Callable[[tuple[int, ...]], str]) -> Path:
    """Write it whole. stored: shape → data type in which a tensor of floating-point numbers is stored."""
    header: dict[str, object] = {}
    tensors: list[tuple[str, tuple[int, ...], torch.dtype]] = []
    end = 0
    for name, (published, shape) in fixture.tensors.items():
        kind = stored(shape) if DTYPES[published].is_floating_point else published
        begin, end = end, end + prod(shape) * DTYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        tensors.append((name, shape, DTYPES[kind]))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, dtype in tensors:
            _write_values(file, _values(name, shape, dtype), prod(shape))
    return unfinished.replace(path)


def _values(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = min(prod(shape), BLOCK)
    if not dtype.is_floating_point:
        return torch.arange(count, dtype=dtype)
    if len(shape) < 2:
        return torch.full((count,), float(not name.endswith("bias")), dtype=dtype)
    values = torch.randn(count, generator=torch.Generator().manual_seed(prod(shape)))
    return (values / sqrt(prod(shape[1:]))).to(dtype)


def _write_values(file: BinaryIO, values: Tensor, count: int) -> None:
    data = values.view(torch.uint8).numpy().tobytes()
    size = count * values.element_size()
    for begin in range(0, size, len(data)):
        file.write(data[: size - begin])
