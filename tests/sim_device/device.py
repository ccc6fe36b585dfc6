"""A torch device "sim" on a machine without an accelerator, built from `sim.cpp` (g++ and ninja).

Its tensors are on a device of their own, every operation runs on the CPU underneath, and an operation that
mixes devices fails as it does on a GPU. Bytes that cross and bytes in use are counted, the memory can be
bounded, and any allocation can be made to fail.

    LORALOOM_TEST_DEVICE=cuda pytest tests/sim_device

runs the same comparisons on a real one, without those that need the counters; nothing is built then.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("sim.cpp")
EVERYTHING = (1 << 63) - 1
NAME = os.environ.get("LORALOOM_TEST_DEVICE", "sim")
IS_SIM = NAME == "sim"
WIDER = 1 if IS_SIM else 30
"""Times by which latents may be further off on a real device: its products and convolutions add up in another
order, where the simulated one runs the CPU's own code."""

if not IS_SIM:  # 10 bits of each float32 would be all that counts; read when cuBLAS and cuDNN are loaded
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


class _Module:
    """What `torch.sim` offers."""

    def __init__(self, built: Any) -> None:
        self._built = built
        self.is_secret = False
        """Whether the limit is kept without being said, as drivers do that promise memory of the host."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    manual_seed = manual_seed_all

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: object = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        """(free, all) bytes."""
        stats = self._built.stats()
        whole = 1 << 40 if self.is_secret else min(stats["limit"], 1 << 40)
        return whole - stats["live"], whole

    def get_per_process_memory_fraction(self, device: object = None) -> float:
        """1: all. As CUDA's, it takes no device without an index."""
        if isinstance(device, torch.device) and ":" not in str(device):
            raise ValueError(
                f"Expected a torch.device with a specified index or an integer, but got:{device}"
            )
        return 1.0


class Sim:
    """The device and its counters."""

    def __init__(self, built: Any, module: _Module) -> None:
        self._built, self._module = built, module

    def reset(self) -> None:
        """Count from here: bytes, copies, allocations; the peak begins at what is in use."""
        self._built.reset()

    def __getitem__(self, name: str) -> int:
        """ops, to, to_bytes, from, from_bytes, live, peak, allocations."""
        return self._built.stats()[name]

    @contextmanager
    def limited(self, size: int, *, secretly: bool = False) -> Generator[None]:
        """The device has so many bytes; secretly: and says that it has more."""
        self._built.limit(size)
        self._module.is_secret = secretly
        try:
            yield
        finally:
            self._built.limit(EVERYTHING)
            self._module.is_secret = False

    @contextmanager
    def failing(self, number: int) -> Generator[None]:
        """That allocation fails, counted from here."""
        self._built.reset()
        self._built.fail(number)
        try:
            yield
        finally:
            self._built.fail(-1)


class Real:
    """A device that is there, and what PyTorch knows of its memory."""

    def __init__(self) -> None:
        self._device = torch.device(NAME)
        self._module: Any = torch.get_device_module(self._device)

    def reset(self) -> None:
        """The peak begins at what is in use."""
        if hasattr(self._module, "reset_peak_memory_stats"):
            self._module.reset_peak_memory_stats(self._device)

    def __getitem__(self, name: str) -> int:
        """live, peak; 0 where nothing counts them. Of what is live the workspaces of cuBLAS are no part."""
        if not hasattr(self._module, "memory_allocated"):
            return 0
        self._module.synchronize(self._device)
        if name == "peak":
            return self._module.max_memory_allocated(self._device)
        gc.collect()
        if self._device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportAttributeAccessIssue]
        self._module.empty_cache()  # blocks that another stream has used are counted until then
        return self._module.memory_allocated(self._device)


def assert_near(found: Tensor, wanted: Tensor, rtol: float, atol: float) -> None:
    """On the simulated device as `torch.testing.assert_close`. On a real one the difference as a whole
    counts, in relation to all values: where inputs are rounded to integers, or a sampler chooses its steps,
    a last bit may change single values by far more."""
    if IS_SIM:
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
        return
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    off = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    assert off <= WIDER * rtol, f"off by {off:.2e}"


def missing() -> str | None:
    """Why the device cannot be built here; None where it can."""
    lacking = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    return f"the simulated device needs {' and '.join(lacking)}" if lacking else None


@cache
def sim_device(folder: Path) -> Sim:
    """The device, built in `folder` unless it lies there already, and registered with torch."""
    folder.mkdir(parents=True, exist_ok=True)
    built: Any = cpp_extension.load(
        "loraloom_sim", [str(SOURCE)], extra_cflags=["-O1"], build_directory=str(folder)
    )
    torch.utils.rename_privateuse1_backend("sim")
    module = _Module(built)
    torch._register_device_module("sim", module)  # pyright: ignore[reportPrivateUsage]
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    built.hooks()
    return Sim(built, module)
