"""Names for files that come from other machines."""

from __future__ import annotations

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
