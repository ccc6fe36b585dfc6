"""The disk of the power tests loses what it may and keeps what it must."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.power.disk import LOSSES, Disk, Loss, read_records
from tests.power.recorded import Recording, recorded

WRITES = """
import os, sys
folder = sys.argv[1]
os.mkdir(folder + "/kept")
above = os.open(folder, os.O_RDONLY)
os.fsync(above)
inside = os.open(folder + "/kept", os.O_RDONLY)

def write(name, flush, sync_folder):
    file = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=inside)
    os.write(file, b"1" * 2000)
    if flush:
        os.fsync(file)
    os.close(file)
    if sync_folder:
        os.fsync(inside)

write("flushed", True, True)
write("renamed.part", True, False)
os.rename(folder + "/kept/renamed.part", folder + "/kept/renamed")
os.fsync(inside)
write("content", False, True)
write("name", True, False)
file = open(folder + "/kept/flushed", "r+b")
file.write(b"2" * 1000)
file.flush()
os.unlink("name", dir_fd=inside)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    recording = recorded(tmp_path_factory.mktemp("power"))
    subprocess.run([sys.executable, "-c", WRITES, str(recording.root)], env=recording.environment, check=True)
    return recording


def left(recording: Recording, loss: Loss, target: Path, seed: int = 1) -> dict[str, bytes]:
    disk = Disk(recording.root)
    for record in read_records(recording.file):
        disk.see(record)
    target.mkdir()
    disk.write(target, loss, random.Random(seed))
    return {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}


def test_nothing_is_lost(written: Recording, tmp_path: Path) -> None:
    found = left(written, "nothing", tmp_path / "a")
    root = written.root
    assert found == {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert {*found} == {"kept/flushed", "kept/renamed", "kept/content"}


def test_everything_that_was_not_flushed_is_lost(written: Recording, tmp_path: Path) -> None:
    found = left(written, "everything", tmp_path / "a")
    assert found == {"kept/flushed": b"1" * 2000, "kept/renamed": b"1" * 2000, "kept/content": b""}


def test_of_what_was_not_flushed_any_part_may_be_lost(written: Recording, tmp_path: Path) -> None:
    seen: dict[str, set[bytes]] = {}
    for seed in range(60):
        for loss in LOSSES[2:]:
            for name, content in left(written, loss, tmp_path / f"{seed}{loss}", seed).items():
                seen.setdefault(name, set()).add(content)
    assert seen["kept/renamed"] == {b"1" * 2000}
    whole = b"2" * 1000 + b"1" * 1000
    assert {b"1" * 2000, whole, b"2" * 512 + b"1" * 1488, bytes(1000) + b"1" * 1000} <= seen["kept/flushed"]
    assert {b"", b"1" * 512, b"1" * 2000, bytes(2000)} <= seen["kept/content"]
    assert os.listdir(tmp_path)
