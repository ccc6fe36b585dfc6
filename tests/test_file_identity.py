"""A file in another state is told apart, whatever its times say."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from loraloom.file_identity import FileIdentity


def rewrite(path: Path, content: bytes) -> None:
    """Other content of the same size at the same time, as `cp -p` or an archive puts it there."""
    stat = path.stat()
    time.sleep(0.02)  # the system's clock goes on
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_a_file_that_is_written_over_with_its_time_kept_is_another(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"one")
    before = FileIdentity.of(path)
    assert FileIdentity.of(path) == before == FileIdentity.of(str(path))
    rewrite(path, b"two")
    assert FileIdentity.of(path) != before


def test_what_belongs_to_a_file_is_a_part_of_it(tmp_path: Path) -> None:
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    path.write_bytes(b"one")
    seen = [FileIdentity.of(path)]
    config.write_text('{"lora_alpha": 8}')
    seen.append(FileIdentity.of(path))
    rewrite(config, b'{"lora_alpha": 4}')
    seen.append(FileIdentity.of(path))
    assert len({*seen}) == 3
    assert {i.content for i in seen} == {seen[0].content}
    config.unlink()
    assert FileIdentity.of(path) == seen[0]


def test_a_file_that_gets_another_name_is_the_same_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = FileIdentity.of(path)
    time.sleep(0.02)
    assert FileIdentity.of(path.rename(tmp_path / "b")).content == before.content


@pytest.mark.parametrize(("age", "settled"), [(0.0, False), (1.9, False), (2.1, True), (-3600.0, True)])
def test_a_file_that_was_just_written_may_change_unseen(age: float, settled: bool) -> None:
    """One from the future (a clock was set) is taken as it is, or it would be read anew for ever."""
    at = time.time_ns() - int(age * 1e9)
    assert FileIdentity("a", 1, at, 1, 1).settled is settled
    assert FileIdentity("a", 1, 1, at, 1).settled is settled
