from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.confined import parts_of
from loraloom.errors import InputError
from loraloom.runtime.output_files import OutputFolder


def test_names_count_up_from_the_highest(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    (tmp_path / "rose_00007_.png").write_bytes(b"")
    (tmp_path / "rose_x_00090_.png").write_bytes(b"")
    assert folder.save("rose", ".png", b"a").path.name == "rose_00008_.png"
    assert folder.save("rose", ".png", b"b").path.read_bytes() == b"b"


def test_subfolders_and_tokens(tmp_path: Path) -> None:
    saved = OutputFolder(tmp_path).save("a/b\\%width%x%height%", ".png", b"a", size=(64, 32))
    assert saved.path == tmp_path / "a/b/64x32_00001_.png"
    assert saved.as_ui() == {"filename": "64x32_00001_.png", "subfolder": "a/b", "type": "output"}


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a/../../x", "C:/x", "a\0b", "x" * 300])
def test_a_prefix_never_leads_out(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(InputError, match="prefix"):
        OutputFolder(tmp_path / "out").save(prefix, ".png", b"a")
    assert not list(tmp_path.rglob("*.png"))


def test_a_name_is_either_refused_or_one_that_can_be_asked_for(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    saved = 0
    for length in range(170, 201):
        with suppress(InputError):
            name = folder.save("x" * length, ".png", b"").path.name
            assert parts_of(name) == [name]
            saved += 1
    assert 5 < saved < 30


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/away").symlink_to(tmp_path)
    with pytest.raises(InputError, match="link"):
        OutputFolder(tmp_path / "out").save("away/x", ".png", b"a")


def test_without_hard_links_names_are_still_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links on this file system")

    monkeypatch.setattr(os, "link", refuse)
    names = [OutputFolder(tmp_path).save("x", ".png", b"a").path.name for _ in range(2)]
    assert names == ["x_00001_.png", "x_00002_.png"]
    assert not list(tmp_path.glob(".*"))


def _save_many(root: Path) -> None:
    for _ in range(50):
        OutputFolder(root).save("x", ".png", str(os.getpid()).encode())


def test_two_processes_never_take_one_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_save_many, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    files = list(tmp_path.glob("x_*_.png"))
    assert len(files) == 100
    assert not list(tmp_path.glob(".*"))


PREFIXES = st.lists(
    st.sampled_from(
        ["a", "ü", "..", ".", "/", "\\\\", "%width%", "%year%", "%x%", "con", "\0", ":", " ", "_00009_"]
    )
    | st.text(max_size=2),
    max_size=6,
).map("".join)


@settings(max_examples=80)
@given(prefix=PREFIXES, size=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_any_prefix_is_refused_or_gives_two_files_inside(
    prefix: str, size: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "prefixes" / "out"
    folder = OutputFolder(root)
    try:
        first, second = (folder.save(prefix, ".png", content, size=size) for content in (b"1", b"2"))
    except InputError:
        return
    assert (first.path.read_bytes(), second.path.read_bytes()) == (b"1", b"2")
    for saved in (first, second):
        assert saved.path.resolve().is_relative_to(root.resolve())
        assert saved.path == root.joinpath(*saved.subfolder.split("/"), saved.path.name)
        parts_of(f"{saved.subfolder}/{saved.path.name}" if saved.subfolder else saved.path.name)
    assert [*root.parent.iterdir()] == [root]
