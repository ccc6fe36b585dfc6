"""Names for files that come from other machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from loraloom.cluster.incoming import Incoming
from loraloom.confined import LeadsOut
from loraloom.workflow.graph import JSON


def entry(filename: str, subfolder: str = "", kind: str = "output") -> dict[str, JSON]:
    return {"filename": filename, "subfolder": subfolder, "type": kind}


def finished(*entries: dict[str, JSON]) -> dict[str, Any]:
    return {"kind": "node_finished", "ui": {"images": [*entries]}}


def test_names_go_on_where_the_folder_stands_and_are_promised_once(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "output", tmp_path / "temp")
    (tmp_path / "output/cats").mkdir(parents=True)
    (tmp_path / "output/cats/a_00007_.png").write_bytes(b"")
    found = [
        incoming.promised(finished(entry("a_00001_.png", "cats")), [(entry("a_00001_.png", "cats"), "s")])
        for _ in range(2)
    ]
    assert [message["ui"]["images"][0]["filename"] for message, _ in found] == [
        "a_00008_.png",
        "a_00009_.png",
    ]
    assert [names for _, names in found] == [
        [("s", str(tmp_path / "output/cats/a_00008_.png"))],
        [("s", str(tmp_path / "output/cats/a_00009_.png"))],
    ]
    incoming.settled(found[1][1])
    incoming.settled(found[0][1])
    message, _ = incoming.promised(
        finished(entry("a_00001_.png", "cats")), [(entry("a_00001_.png", "cats"), "s")]
    )
    assert message["ui"]["images"][0]["filename"] == "a_00008_.png"


def test_pictures_of_a_batch_keep_apart_where_new_names_are_former_ones(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "output", tmp_path / "temp")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/a_00001_.png").write_bytes(b"")
    entries = [entry(f"a_{number:05}_.png") for number in (1, 2, 3)]
    message, names = incoming.promised(finished(*entries), [(e, str(n)) for n, e in enumerate(entries)])
    said = [found["filename"] for found in message["ui"]["images"]]
    assert said == ["a_00002_.png", "a_00003_.png", "a_00004_.png"]
    assert names == [(str(n), str(tmp_path / "output" / name)) for n, name in enumerate(said)]


def test_a_folder_is_read_once_for_all_pictures_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming = Incoming(tmp_path / "output", tmp_path / "temp")
    read, listdir = list[Path](), os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (read.append(path), listdir(path))[1])
    entries = [entry(f"a_{number:05}_.png", "cats") for number in range(1, 65)]
    incoming.promised(finished(*entries), [(e, "s") for e in entries])
    assert len(read) == 1 and len(incoming.promised_names) == 64


@pytest.mark.parametrize("subfolder", ["with blank", "Köln/猫 🐈", "a" * 200])
def test_odd_and_long_names_are_taken(tmp_path: Path, subfolder: str) -> None:
    """The longest that file systems take, of which a further digit or a number is one too many."""
    incoming = Incoming(tmp_path / "output", tmp_path / "temp")
    stem = "ü" * 94
    (tmp_path / "output" / subfolder).mkdir(parents=True)
    (tmp_path / "output" / subfolder / f"{stem}_99999_.png").write_bytes(b"")
    whole, bare = entry(f"{stem}_00001_.png", subfolder), entry("y" * 196 + ".png", subfolder)
    found = [incoming.promised(finished(e), [(e, "s")])[1][0][1] for e in (whole, whole, bare, bare)]
    assert len({*found}) == 4
    for name in found:
        assert len(os.fsencode(Path(name).name)) <= 200
        Path(name).write_bytes(b"")


def test_a_name_without_a_counter_is_kept_unless_it_is_taken(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "output", tmp_path / "temp")
    names = [incoming.promised({}, [(entry("x.latent"), "s")])[1][0][1] for _ in range(2)]
    assert [Path(name).name for name in names] == ["x.latent", "x_00002_.latent"]


def test_temporary_files_have_their_names_at_once(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "output", tmp_path / "temp")
    (tmp_path / "staged").write_bytes(b"cat")
    shown = entry("p_00001_.png", kind="temp")
    message = incoming.temporary(finished(shown), [(shown, str(tmp_path / "staged"))])
    assert (tmp_path / "temp" / message["ui"]["images"][0]["filename"]).read_bytes() == b"cat"


def test_no_name_leads_out(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "output", tmp_path / "temp")
    with pytest.raises(LeadsOut):
        incoming.promised({}, [(entry("x.png", "../y"), "s")])
