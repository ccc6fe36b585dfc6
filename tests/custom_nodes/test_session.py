"""Packs from the Python interface and from the command line, together with Loraloom's own nodes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loraloom.cli.main import exit_code_of
from loraloom.errors import WorkflowError
from loraloom.session import Session
from tests.custom_nodes.conftest import CUSTOM_NODES

WORKFLOW: dict[str, Any] = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0xFF0000},
    },
    "2": {"class_type": "TpPassthrough", "inputs": {"value": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(
        tmp_path, output_dir=tmp_path / "output", device="cpu", dtype="fp32", custom_nodes=[CUSTOM_NODES]
    )


def test_a_session_runs_packs_among_its_own_nodes(session: Session) -> None:
    with session:
        result = session.run(WORKFLOW)
    (picture,) = result.images
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert any("broken-import was skipped" in warning for warning in result.warnings)
    assert "folder_paths" not in sys.modules


def test_a_pack_takes_no_class_of_loralooms_own(tmp_path: Path) -> None:
    (tmp_path / "pack.py").write_text(
        "class Mine:\n"
        "    RETURN_TYPES = ()\n"
        "    FUNCTION = 'go'\n"
        "    @classmethod\n"
        "    def INPUT_TYPES(cls): return {}\n"
        "    def go(self): return ()\n"
        "NODE_CLASS_MAPPINGS = {'SaveImage': Mine, 'TpMine': Mine}\n"
    )
    with Session(tmp_path, output_dir=tmp_path, device="cpu", custom_nodes=[tmp_path]) as session:
        assert session.schemas["SaveImage"].python_module == "nodes"
        assert session.schemas["TpMine"].python_module == "custom_nodes.pack"
        assert [str(f) for f in session.packs.failed] == [
            "node pack pack.py: SaveImage was skipped: Loraloom has this class itself"
        ]


def test_a_class_that_objects_stops_the_run(session: Session) -> None:
    bad: dict[str, Any] = {"1": {"class_type": "TpChecked", "inputs": {"size": 12, "kind": "a", "other": 1}}}
    with session, pytest.raises(WorkflowError, match="size 12 is too much"):
        session.run(bad)


def test_the_command_runs_packs_only_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(WORKFLOW))
    command = ["run", str(workflow), "--json", "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    code, out, _ = _call(command, capsys)
    assert code == 2 and "TpPassthrough does not exist" in json.loads(out)["error"]["message"]
    code, out, err = _call([*command, "--custom-nodes", str(CUSTOM_NODES)], capsys)
    # Standard output is one JSON object, though the pack prints.
    assert code == 0 and json.loads(out)["status"] == "done"
    assert "broken-import was skipped: ModuleNotFoundError" in err
    assert (tmp_path / "out/x_00001_.png").is_file()


def _call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    code = exit_code_of(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err
