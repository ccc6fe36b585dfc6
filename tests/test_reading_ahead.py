"""Files that are asked for ahead are in the system's memory; what is too large or not there is left alone."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from loraloom import reading_ahead
from loraloom.reading_ahead import read_ahead

SIZE = 9 << 20


def in_memory(path: Path) -> float:
    """The share of a file's pages that the system holds."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        failed = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), pages)
        del first
        assert not failed
        return sum(page & 1 for page in pages) / len(pages)


@pytest.fixture
def forgotten(tmp_path: Path) -> Path:
    """A file that is on the disk only."""
    if sys.platform != "linux":
        pytest.skip("other systems are not asked")
    path = tmp_path / "model"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_memory(path) > 0.1:
        pytest.skip("this file system keeps its files in memory")
    return path


def test_a_file_is_read_whole(forgotten: Path, tmp_path: Path) -> None:
    read_ahead([tmp_path / "not there", tmp_path, forgotten, forgotten]).join(60)
    until = time.monotonic() + 60
    while in_memory(forgotten) < 1 and time.monotonic() < until:  # what is on its way
        time.sleep(0.01)
    assert in_memory(forgotten) == 1


def test_what_memory_does_not_take_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reading_ahead, "_ask_for", lambda path, size: asked.append(path.name))
    for name, size in (("a", 30), ("b", 30), ("c", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    memory = psutil.virtual_memory()._replace(available=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    read_ahead(tmp_path / name for name in "abc").join(60)
    assert asked == ["a", "c"]
