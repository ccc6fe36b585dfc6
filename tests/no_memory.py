"""The two kinds of error that say that memory could not be had, as allocators raise them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch


def on_an_accelerator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def on_the_cpu() -> None:
    torch.empty(1 << 56, dtype=torch.uint8)


both_kinds = pytest.mark.parametrize("fail", [on_an_accelerator, on_the_cpu])
Fail = Callable[[], None]
