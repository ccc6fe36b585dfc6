"""Names stay inside their folder, also while somebody swaps folders for links."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loraloom.confined import BadName, LeadsOut, open_inside, open_regular, parts_of, pinned
from loraloom.runtime.output_files import OutputFolder

CANARY = b"the canary"


ODD = ("a\nb", "/a", "C:a", "con", "aux.png", "a.", "b ", "x" * 300, "a\ud800", "a/" * 20)


@pytest.mark.parametrize("name", ODD)
def test_names_that_not_every_system_allows(name: str) -> None:
    with pytest.raises(BadName):
        parts_of(name)


@pytest.mark.parametrize("name", ["..", "a/../b", "..\\b"])
def test_names_that_lead_out(name: str) -> None:
    with pytest.raises(LeadsOut):
        parts_of(name)


def test_links_are_followed_inside_and_refused_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "x").write_bytes(b"x")
    (root / "inner").symlink_to("a")
    (root / "outer").symlink_to(tmp_path)
    (tmp_path / "secret").write_bytes(CANARY)
    with open_inside(root, ["inner", "x"]) as file:
        assert file.read() == b"x"
    with pytest.raises(LeadsOut):
        open_inside(root, ["outer", "secret"])
    with pytest.raises(LeadsOut), pinned(root, ["outer"]):
        pass


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("pipes are no files there")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "loop", "dangling", "nothing"):
        with pytest.raises(FileNotFoundError):
            open_inside(tmp_path, [name])
    with pytest.raises(FileNotFoundError):
        open_inside(tmp_path, [])


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pinned(tmp_path, ["a", "b"], make=True) as folder:
            (folder / "c").write_bytes(b"c")
        with open_inside(tmp_path, ["a", "b", "c"]):
            pass
        with pytest.raises(FileNotFoundError), pinned(tmp_path, ["a", "z", "y"]):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def exchange(folder: Path, link: Path) -> None:
    """Let a link take a folder's place, and give it back, whatever others make there in between."""
    aside = folder.with_name("aside")
    for old, new in ((folder, aside), (link, folder), (folder, link), (aside, folder)):
        while True:
            try:
                os.rename(old, new)
            except OSError:
                shutil.rmtree(new, ignore_errors=True)
            else:
                break


@contextmanager
def swapped(root: Path, outside: Path) -> Generator[None]:
    """root/sub is now a folder, now a link that leads out, without end."""
    folder, link = root / "sub", root / "link"
    folder.mkdir(parents=True)
    (folder / "secret").write_bytes(b"no secret")
    link.symlink_to(outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            exchange(folder, link)

    swapping = threading.Thread(target=swap)
    swapping.start()
    yield
    over.set()
    swapping.join()


@pytest.mark.skipif(sys.platform != "linux", reason="folders are pinned on Linux")
def test_nothing_outside_is_read_while_links_are_swapped(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(CANARY)
    seen: set[bytes] = set()
    with swapped(tmp_path / "root", outside):
        for _ in range(4000):
            try:
                with open_inside(tmp_path / "root", ["sub", "secret"]) as file:
                    seen.add(file.read())
            except (FileNotFoundError, LeadsOut):
                seen.add(b"")
    assert seen == {b"no secret", b""}


@pytest.mark.skipif(sys.platform != "linux", reason="folders are pinned on Linux")
def test_nothing_outside_is_written_while_links_are_swapped(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    saved = 0
    with swapped(tmp_path / "root", outside):
        for _ in range(300):
            try:
                OutputFolder(tmp_path / "root").save("sub/x", ".png", b"picture")
                saved += 1
            except Exception:  # noqa: BLE001 - any refusal will do
                continue
    assert list(outside.iterdir()) == []
    assert saved


def test_names_are_as_long_and_as_deep_as_they_may_be() -> None:
    assert parts_of("/".join(["a"] * 16)) == ["a"] * 16
    assert parts_of("é" * 100) == ["é" * 100]
    for name in ("/".join(["a"] * 17), "a" * 201, "é" * 101):
        with pytest.raises(BadName):
            parts_of(name)


@pytest.mark.skipif(sys.platform == "win32", reason="there they are no names")
def test_signs_that_only_windows_forbids_are_names_elsewhere() -> None:
    assert parts_of('what? "a:b" <c>|*.png') == ['what? "a:b" <c>|*.png']


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
def test_what_is_no_file_is_closed_again_and_a_link_to_a_file_followed(tmp_path: Path) -> None:
    assert sys.platform != "win32"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"inside")
    (tmp_path / "link").symlink_to("file")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(FileNotFoundError):
            open_regular(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError):
            open_inside(tmp_path, ["pipe"])
        with open_regular(tmp_path / "link") as file:
            assert file.read() == b"inside"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_and_the_one_it_is_in_are_made(tmp_path: Path) -> None:
    with pinned(tmp_path / "not there", ["a", "b"], make=True) as folder:
        (folder / "c").write_bytes(b"c")
    assert (tmp_path / "not there/a/b/c").read_bytes() == b"c"
