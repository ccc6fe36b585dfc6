"""How much memory is left, which errors say that there was too little, and what a processor computes in."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

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
    "cublas_status_alloc_failed",
)


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device now: free memory and what the system would give back."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(psutil.virtual_memory().available, _cgroup_memory())


def is_allocation_failure(error: BaseException) -> bool:
    """Whether an error says that memory could not be had. Accelerators raise torch.OutOfMemoryError; the
    allocator of the CPU, Metal's and cuBLAS raise a plain RuntimeError, with their own words for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ALLOCATORS_SAY)


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


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return False
    flags = _text("/proc/cpuinfo")
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "asimdbf16 ", " bf16 "))
