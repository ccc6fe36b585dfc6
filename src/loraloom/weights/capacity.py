"""How much memory is left, which errors say that there was too little, and what a processor computes in."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import Any, TypeVar, cast

import psutil
import torch

from loraloom import heap
from loraloom.errors import OutOfMemory

Made = TypeVar("Made")

_CGROUPS = (
    # limit, usage, statistics with the page cache that can be given back
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)

_ALLOCATORS_SAY = (
    "can't allocate memory",  # the CPU's, on POSIX
    "not enough memory: you tried to allocate",  # the CPU's, on Windows
    "out of memory",
    "_status_alloc_failed",  # cuBLAS, cuDNN and their kin
    "cublas_status_not_initialized",  # where there is no memory for cuBLAS itself
)


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device now: free memory and what the system would give back."""
    if device.type == "mps":  # shares the host's memory, and may use a part of it
        spare = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return min(spare, psutil.virtual_memory().available)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        if hasattr(module, "mem_get_info"):
            free, whole = module.mem_get_info(device)
            held, used = _held_by_torch(module, device)
            if hasattr(module, "get_per_process_memory_fraction"):
                allowed = int(module.get_per_process_memory_fraction(_index(device, module)) * whole)
                free = max(0, min(free, allowed - held))
            return free + held - used
    return min(psutil.virtual_memory().available, _cgroup_memory())


def _held_by_torch(module: Any, device: torch.device) -> tuple[int, int]:
    """Bytes that torch holds of a device, and how many of them are in use. Of all that it counts only these
    are picked: flattened, as `memory_allocated` does it, they take longer than patching a weight."""
    counted = getattr(module, "memory_stats_as_nested_dict", lambda device: {})(device)
    if not counted:
        return 0, 0
    held, used = (counted[name]["all"]["current"] for name in ("reserved_bytes", "allocated_bytes"))
    return held, used


def is_allocation_failure(error: BaseException) -> bool:
    """Whether an error says that memory could not be had. Accelerators raise torch.OutOfMemoryError, their
    drivers torch.AcceleratorError; the allocator of the CPU, Metal's and cuBLAS raise a plain RuntimeError.
    All but the first are known by their words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ALLOCATORS_SAY)


def give_back(device: torch.device) -> None:
    """Return to the system what is kept of the host's memory for later, and to the device what torch keeps
    of it, with the workspaces of cuBLAS, one of tens of megabytes for each stream that has multiplied: they
    are had again when they are needed."""
    heap.give_back()
    if device.type == "cpu":
        return
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportAttributeAccessIssue]
    torch.get_device_module(device).empty_cache()


def let_go(error: BaseException) -> None:
    """Of what was computed up to a failure: the frames that it came through hold it as long as somebody has
    the error, which would leave no more memory to the next attempt."""
    clear_frames(error.__traceback__)


def until_it_fits(make: Callable[[], Made], give_way: Callable[[], bool]) -> Made:
    """What `make` gives, tried again after an allocation failed for as long as more can be had: give_way
    makes others leave, and says whether any did."""
    while True:
        try:
            return make()
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise
            let_go(error)
            if not give_way():
                raise


@contextmanager
def clear_about_memory(
    doing: str, instead: str = "choose a smaller picture or a smaller dtype"
) -> Generator[None]:
    """Says what could not be done where memory could not be had, and what to do: OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_allocation_failure(error):
            raise
        let_go(error)
        reason = str(error).partition("\n")[0]
        raise OutOfMemory(
            f"There is not enough memory on the device for {doing}. Close other programs, or {instead}. "
            f"({reason})"
        ) from error


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


def _cgroup_memory() -> int:
    """What the container may still use; a very large number where there is no limit."""
    for limit, usage, statistics in _CGROUPS:
        bound, used = _text(limit).strip(), _text(usage).strip()
        if bound.isdigit() and used.isdigit():
            fields = _text(statistics)
            cached = sum(_field(fields, name) or 0 for name in ("inactive_file", "active_file"))
            return max(0, int(bound) - int(used) + cached)
    return 1 << 62


def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device multiplies floats of 8 bits in hardware (NVIDIA's since Ada and Hopper)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "xpu":
        return True
    if device.type == "mps":
        return False
    flags = _text("/proc/cpuinfo")
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "asimdbf16 ", " bf16 "))


def _index(device: torch.device, module: Any) -> int:
    """PyTorch takes "cuda" alone for a device nearly everywhere, but not where this number is asked for."""
    index = cast("int | None", device.index)  # what torch declares leaves None out
    return module.current_device() if index is None else index
