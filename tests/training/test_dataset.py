"""Folders, captions and the split."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from loraloom.errors import InputError
from loraloom.training.dataset import read_examples, split, tag_frequency
from loraloom.training.settings import FolderSettings


def _picture(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(path)


def test_kohya_folders_give_repeats_and_captions(tmp_path: Path) -> None:
    _picture(tmp_path / "10_style thing" / "a.png")
    _picture(tmp_path / "10_style thing" / "b.png", 9)
    (tmp_path / "10_style thing" / "b.txt").write_text("a cat,\n sitting ", "utf-8")
    _picture(tmp_path / "ignored" / "c.png")
    found = read_examples([FolderSettings(tmp_path)])
    assert [(e.path.name, e.caption, e.repeats) for e in found] == [
        ("a.png", "style thing", 10),
        ("b.png", "a cat, sitting", 10),
    ]
    assert found[0].size == (8, 6)


def test_plain_folder_and_trigger(tmp_path: Path) -> None:
    _picture(tmp_path / "a.jpg")
    (tmp_path / "a.caption").write_text("dog", "utf-8")
    (example,) = read_examples([FolderSettings(tmp_path, trigger="zz", repeats=3)])
    assert (example.caption, example.repeats) == ("zz, dog", 3)


def test_trigger_that_is_there_is_not_doubled(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("dog, zz", "utf-8")
    (example,) = read_examples([FolderSettings(tmp_path, trigger="zz")])
    assert example.caption == "dog, zz"


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_examples([FolderSettings(tmp_path / "none")])
    with pytest.raises(InputError, match="no pictures"):
        read_examples([FolderSettings(tmp_path)])
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png is not a picture"):
        read_examples([FolderSettings(tmp_path)])


def test_the_split_stays_when_pictures_are_added(tmp_path: Path) -> None:
    for number in range(20):
        _picture(tmp_path / f"{number:02d}.png", number)
    before = split(read_examples([FolderSettings(tmp_path)]), 0.1)
    _picture(tmp_path / "new.png", 200)
    after = split(read_examples([FolderSettings(tmp_path)]), 0.1)
    kept = {e.digest for e in before.validation}
    assert len(kept) == 2
    assert len(kept & {e.digest for e in after.validation}) >= 1
    assert not {e.digest for e in before.training} & kept


def test_tag_frequency_counts_pictures_by_folder(tmp_path: Path) -> None:
    for name, caption in (("a", "x, y"), ("b", "x")):
        _picture(tmp_path / "5_thing" / f"{name}.png", ord(name))
        (tmp_path / "5_thing" / f"{name}.txt").write_text(caption, "utf-8")
    assert tag_frequency(read_examples([FolderSettings(tmp_path)])) == {"5_thing": {"x": 2, "y": 1}}
