"""Folders, captions and the split."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from loraloom.errors import InputError
from loraloom.training.dataset import read_examples, remarks, split, tag_frequency
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


@pytest.mark.parametrize("suffix", ["jfif", "gif", "tif", "tiff", "avif", "PNG", "JPG"])
def test_kinds_of_pictures(suffix: str, tmp_path: Path) -> None:
    kind = {"jfif": "JPEG", "jpg": "JPEG", "tif": "TIFF"}.get(suffix.lower(), suffix)
    Image.new("RGB", (8, 6)).save(tmp_path / f"a.{suffix}", kind.upper())
    assert [e.path.name for e in read_examples([FolderSettings(tmp_path)])] == [f"a.{suffix}"]


@pytest.mark.parametrize("name", ["A.TXT", "A.Txt", "A.CAPTION"])
def test_captions_in_capitals(name: str, tmp_path: Path) -> None:
    _picture(tmp_path / "A.png")
    (tmp_path / name).write_text("a cat", "utf-8")
    assert read_examples([FolderSettings(tmp_path)])[0].caption == "a cat"


def test_small_letters_win_over_capitals(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    for name, text in (("a.TXT", "old"), ("a.txt", "new"), ("a.caption", "other")):
        (tmp_path / name).write_text(text, "utf-8")
    assert read_examples([FolderSettings(tmp_path)])[0].caption == "new"


def test_what_macos_leaves_behind_is_no_picture(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "._a.txt").write_bytes(b"\0\5\x16\7\xff")
    examples = read_examples([FolderSettings(tmp_path)])
    assert [e.path.name for e in examples] == ["a.png"]
    assert list(remarks(examples)) == []


def test_a_picture_of_one_pixel_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(InputError, match=r"dot\.png has 1×1 pixels"):
        read_examples([FolderSettings(tmp_path)])


def test_copies_are_one_picture_to_the_split(tmp_path: Path) -> None:
    for number in range(20):
        _picture(tmp_path / f"{number}.png", 5)
    examples = read_examples([FolderSettings(tmp_path)])
    found = split(examples, 0.5)
    assert (len(found.training), len(found.validation)) == (20, 0)
    assert list(remarks(examples)) == ["all 20 pictures are copies of one; none is kept for validation"]
    _picture(tmp_path / "other.png", 9)
    found = split(read_examples([FolderSettings(tmp_path)]), 0.5)
    assert {len(found.training), len(found.validation)} == {1, 20}


def test_folders_that_are_not_entered_are_said(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    _picture(tmp_path / "more/b.png")
    (tmp_path / "empty").mkdir()
    (line,) = remarks(read_examples([FolderSettings(tmp_path)]))
    assert "the folders more left out" in line


def test_files_that_are_not_read_are_said(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    for name in ("b.heic", "c.txt", "a.txt", "notes.md"):
        (tmp_path / name).write_text("x", "utf-8")
    said = list(remarks(read_examples([FolderSettings(tmp_path)])))
    assert [line.removeprefix(f"{tmp_path}: ") for line in said] == [
        "b.heic left out: not a kind of picture that is read",
        "c.txt left out: there is no picture of that name",
    ]
