from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loraloom.custom_nodes.describe import Kept, read, said_of
from loraloom.custom_nodes.load import Packs


def test_what_packs_declare_comes_through_json(packs: Packs) -> None:
    found = read(json.loads(json.dumps(said_of(packs))))
    assert found.schemas == {name: kind.schema for name, kind in packs.nodes.items()}
    assert found.failed == packs.failed
    assert found.covers("TpChecked") == {"size", "kind"}
    assert found.covers("TpCheckedTypes") == {"input_types"}
    assert not found.covers("TpNumber")


def test_it_is_kept_until_a_file_changes(packs: Packs, tmp_path: Path) -> None:
    (tmp_path / "packs/one").mkdir(parents=True)
    code = tmp_path / "packs/one/__init__.py"
    code.write_text("a")
    kept = Kept(tmp_path / "user/packs.json", [tmp_path / "packs"])
    assert kept.read() is None
    kept.write(said_of(packs))
    found = kept.read()
    assert found is not None and set(found.schemas) == set(packs.nodes)
    os.utime(code, (1, 1))
    assert kept.read() is None
    kept.write(said_of(packs))
    assert kept.read() is not None
    (tmp_path / "packs/two.py").write_text("b")
    assert kept.read() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"of": 1}', b'{"of": "x", "said": 5}', b"\xff"])
def test_a_file_that_is_no_such_thing_counts_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "packs.json").write_bytes(content)
    assert Kept(tmp_path / "packs.json", [tmp_path]).read() is None


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_packs_that_are_links_and_files_that_are_none(packs: Packs, tmp_path: Path) -> None:
    """A pack that is a link to its repository changes there; a loop of links and an editor's lock end
    nothing."""
    (tmp_path / "repository").mkdir()
    code = tmp_path / "repository/__init__.py"
    code.write_text("a")
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs/one").symlink_to(tmp_path / "repository")
    (tmp_path / "repository/loop").symlink_to(tmp_path / "packs")
    (tmp_path / "packs/.#two.py").symlink_to("somebody@here.1")
    kept = Kept(tmp_path / "user/packs.json", [tmp_path / "packs"])
    kept.write(said_of(packs))
    assert kept.read() is not None
    code.write_text("b")
    assert kept.read() is None
    (tmp_path / "packs/two.py").symlink_to("nowhere")
    kept.write(said_of(packs))  # not kept, and no more
    assert kept.read() is None
