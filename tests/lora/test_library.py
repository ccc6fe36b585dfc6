"""All LoRA files of a folder: listed, read, remembered, told apart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loraloom.errors import InputError
from loraloom.lora.keeping import rename, write_notes, write_preview
from loraloom.lora.library import Entry, Library
from tests.lora.small_files import write_small_lora


def read_all(library: Library) -> None:
    while library.read_next():
        pass


def test_files_are_listed_at_once_and_read_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    write_small_lora(folder / "styles" / "ink.safetensors", metadata={"modelspec.trigger_phrase": "ink wash"})
    write_small_lora(folder / "big.safetensors", "sdxl", rank=8)
    (folder / "styles" / "ink.preview.png").write_bytes(b"picture")
    (folder / "broken.safetensors").write_bytes(b"no")
    library = Library(tmp_path / "cache.json")
    library.scan([folder])
    before = library.since(0)
    assert {e.name for e in before.entries} == {
        "styles/ink.safetensors",
        "big.safetensors",
        "broken.safetensors",
    }
    assert (before.read, before.total) == (0, 3)
    read_all(library)
    after = library.since(before.version)
    found = {e.name: e for e in after.entries}
    assert (after.read, len(found)) == (3, 3)
    ink = found["styles/ink.safetensors"]
    assert (ink.family, ink.base, ink.rank, ink.triggers) == (
        "sd15",
        "Stable Diffusion 1.5",
        "4",
        ("ink wash",),
    )
    assert ink.preview > 0
    assert found["big.safetensors"].family == "sdxl"
    assert "cut short" in found["broken.safetensors"].problem
    assert library.since(after.version).entries == ()


def test_what_was_read_is_remembered_until_the_file_or_a_sidecar_changes(tmp_path: Path) -> None:
    path = write_small_lora(tmp_path / "loras" / "a.safetensors")
    write_small_lora(tmp_path / "loras" / "b.safetensors", fill=1)
    first = Library(tmp_path / "cache.json")
    first.scan([tmp_path / "loras"])
    read_all(first)
    first.save()
    second = Library(tmp_path / "cache.json")
    second.scan([tmp_path / "loras"])
    assert second.since(0).read == 2
    assert second.since(0).entries == first.since(0).entries
    write_notes(path, {"activation text": "word"})
    second.scan([tmp_path / "loras"])
    assert second.since(0).read == 1
    read_all(second)
    entry = second.find("a.safetensors")
    assert entry is not None
    assert entry.triggers == ("word",)


@pytest.mark.parametrize(
    ("noted", "strength"),
    [(0.8, 0.8), (-1, -1.0), (0, None), (True, None), ("0.8", None), (float("nan"), None)],
)
def test_a_strength_that_was_noted_is_told(tmp_path: Path, noted: object, strength: float | None) -> None:
    path = write_small_lora(tmp_path / "loras" / "a.safetensors")
    path.with_suffix(".json").write_text(json.dumps({"preferred weight": noted}))
    library = Library(tmp_path / "cache.json")
    library.scan([tmp_path / "loras"])
    read_all(library)
    entry = library.find("a.safetensors")
    assert entry is not None
    assert (entry.strength, entry.problem) == (strength, "")


def test_files_that_went_are_told(tmp_path: Path) -> None:
    path = write_small_lora(tmp_path / "loras" / "a.safetensors")
    library = Library(tmp_path / "cache.json")
    library.scan([tmp_path / "loras"])
    version = library.since(0).version
    path.unlink()
    library.scan([tmp_path / "loras"])
    assert library.since(version).gone == ("a.safetensors",)


def test_copies_are_alike_whatever_their_metadata_says(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    write_small_lora(folder / "a.safetensors", metadata={"modelspec.title": "one"})
    write_small_lora(folder / "copy.safetensors", metadata={"modelspec.title": "another name"})
    write_small_lora(folder / "other.safetensors", fill=7)
    library = Library(tmp_path / "cache.json")
    library.scan([folder])
    read_all(library)
    entry = library.find("a.safetensors")
    assert entry is not None
    assert [e.name for e in library.alike(entry)] == ["copy.safetensors"]


@pytest.mark.parametrize("text", ["", "nonsense", '{"version": 99}', '{"version": 1, "files": {"x": [1]}}'])
def test_a_damaged_cache_file_is_an_empty_one(tmp_path: Path, text: str) -> None:
    write_small_lora(tmp_path / "loras" / "a.safetensors")
    (tmp_path / "cache.json").write_text(text)
    library = Library(tmp_path / "cache.json")
    library.scan([tmp_path / "loras"])
    assert library.since(0).total == 1


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    write_small_lora(tmp_path / "loras" / "a.safetensors")
    os.symlink(tmp_path / "loras", tmp_path / "loras" / "again")
    library = Library(tmp_path / "cache.json")
    library.scan([tmp_path / "loras"])
    assert library.since(0).total == 1


def test_a_lora_moves_with_everything_beside_it(tmp_path: Path) -> None:
    path = write_small_lora(tmp_path / "a.safetensors")
    write_notes(path, {"notes": "mine", "preferred weight": 0.8})
    write_preview(path, b"picture")
    rename(path, tmp_path / "sub" / "b.safetensors")
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == [
        "b.json",
        "b.preview.png",
        "b.safetensors",
    ]
    assert json.loads((tmp_path / "sub" / "b.json").read_text())["preferred weight"] == 0.8
    assert not path.exists()


def test_a_move_overwrites_nothing(tmp_path: Path) -> None:
    a = write_small_lora(tmp_path / "a.safetensors")
    b = write_small_lora(tmp_path / "b.safetensors", fill=9)
    before = b.read_bytes()
    with pytest.raises(InputError, match="there already"):
        rename(a, b)
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        rename(a, tmp_path / "c.ckpt")
    assert (a.exists(), b.read_bytes()) == (True, before)


def test_notes_keep_what_others_wrote(tmp_path: Path) -> None:
    path = write_small_lora(tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text('{"sd version": "SD1", "notes": "old"}')
    write_notes(path, {"notes": "new"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"sd version": "SD1", "notes": "new"}
    with pytest.raises(InputError, match="no field"):
        write_notes(path, {"__proto__": "x"})
    with pytest.raises(InputError, match="expected"):
        write_notes(path, {"notes": 5})


def scanned(library: Library, folder: Path) -> Entry:
    library.scan([folder])
    read_all(library)
    found = library.find("a.safetensors")
    assert found is not None
    return found


def test_notes_that_are_written_in_one_tick_of_the_clock_are_the_latest(tmp_path: Path) -> None:
    path = write_small_lora(tmp_path / "loras" / "a.safetensors")
    library = Library(tmp_path / "cache.json")
    for word in ("one", "two"):
        write_notes(path, {"activation text": word})
        os.utime(path.with_suffix(".json"), ns=(1, 1))
        assert scanned(library, tmp_path / "loras").triggers == (word,)


def test_the_age_of_a_preview_is_that_of_the_picture_that_is_shown(tmp_path: Path) -> None:
    """Of several, the best one, in whatever order the folder gives them."""
    path = write_small_lora(tmp_path / "loras" / "a.safetensors")
    for at, name in enumerate((".jpg", ".preview.png", ".webp", ".png", ".preview.jpg"), 2):
        picture = path.with_name("a" + name)
        picture.write_bytes(b"x")
        os.utime(picture, (at, at))
    assert scanned(Library(tmp_path / "cache.json"), tmp_path / "loras").preview == 3


def test_versions_of_a_library_that_has_ended_are_not_its_successors(tmp_path: Path) -> None:
    """Who knew that one is given all there is."""
    write_small_lora(tmp_path / "loras" / "a.safetensors")
    first, second = Library(tmp_path / "one.json"), Library(tmp_path / "two.json")
    scanned(first, tmp_path / "loras")
    known = first.since(0).version
    second = Library(tmp_path / "two.json")
    scanned(second, tmp_path / "loras")
    read_again = second.since(second.since(0).version)
    assert (read_again.entries, read_again.whole) == ((), False)
    for version in (known, 0, second.since(0).version + 10**9):
        found = second.since(version)
        assert (len(found.entries), found.whole) == (1, True)
