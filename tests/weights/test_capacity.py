"""What memory is said to be free, and which errors say that there was none."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor

from loraloom.weights import capacity
from loraloom.weights.capacity import available_memory, is_allocation_failure, until_it_fits

CPU = torch.device("cpu")


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system with 1000 bytes available, and a folder for what its control group says."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    files = tuple(str(tmp_path / name) for name in ("limit", "usage", "statistics"))
    monkeypatch.setattr(capacity, "_CGROUPS", (files,))
    return tmp_path


def control_group(folder: Path, limit: str, usage: str, statistics: str = "") -> None:
    for name, text in (("limit", limit), ("usage", usage), ("statistics", statistics)):
        (folder / name).write_text(text)


def test_without_a_limit_it_is_what_the_system_has(system: Path) -> None:
    assert available_memory(CPU) == 1000
    control_group(system, "max\n", "500\n")
    assert available_memory(CPU) == 1000


def test_a_containers_limit_counts_without_what_it_would_give_back(system: Path) -> None:
    control_group(system, "800\n", "600\n", "anon 400\ninactive_file 100\nactive_file 50\n")
    assert available_memory(CPU) == 800 - 600 + 150
    control_group(system, "800\n", "900\n")
    assert available_memory(CPU) == 0


def test_the_real_system_has_some_memory() -> None:
    assert 0 < available_memory(CPU) <= psutil.virtual_memory().total


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize(("share", "free"), [(1.0, 600 + 50), (0.5, 100 + 50), (0.3, 0 + 50)])
def test_a_share_that_was_set_for_torch_counts_as_the_device(
    monkeypatch: pytest.MonkeyPatch, share: float, free: int, device: str
) -> None:
    """Of 1000 bytes 600 are free; torch holds 400, 50 of them unused. PyTorch tells the share of a device
    with an index alone."""

    def share_of(index: int) -> float:
        assert index == (torch.device(device).index or 0)
        return share

    counted = {"reserved_bytes": {"all": {"current": 400}}, "allocated_bytes": {"all": {"current": 350}}}
    module = SimpleNamespace(
        mem_get_info=lambda device: (600, 1000),
        memory_stats_as_nested_dict=lambda device: counted,
        get_per_process_memory_fraction=share_of,
        current_device=lambda: 0,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert available_memory(torch.device(device)) == free


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("MPS backend out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    ],
)
def test_errors_of_allocators_are_known(error: Exception) -> None:
    assert is_allocation_failure(error)


def test_the_real_error_of_the_cpus_allocator_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 56, dtype=torch.uint8)
    assert type(raised.value) is RuntimeError
    assert is_allocation_failure(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_no_failures_to_allocate(error: Exception) -> None:
    assert not is_allocation_failure(error)


def test_a_failed_attempt_has_let_go_of_what_it_made_before_others_make_room() -> None:
    """Its error is still there, and with it the frames that had it."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def attempt() -> str:
        tensor = torch.ones(8)
        made.append(weakref.ref(tensor))
        if len(made) < 3:
            raise torch.OutOfMemoryError("out of memory")
        return "there"

    def give_way() -> bool:
        alive.append(made[-1]() is not None)
        return True

    assert until_it_fits(attempt, give_way) == "there" and alive == [False, False]
    made.clear()
    with pytest.raises(torch.OutOfMemoryError) as kept:
        until_it_fits(attempt, lambda: False)
    assert kept.value and made[-1]() is None
