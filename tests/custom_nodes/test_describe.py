from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loraloom.custom_nodes.describe import declared_by
from loraloom.custom_nodes.load import Packs
from loraloom.errors import InputError
from loraloom.folders import ModelFolders
from tests.custom_nodes.conftest import CUSTOM_NODES


def test_another_process_says_what_packs_declare(packs: Packs, folders: ModelFolders) -> None:
    found = declared_by([CUSTOM_NODES], models=folders.roots)
    assert found.schemas == {name: kind.schema for name, kind in packs.nodes.items()}
    assert found.failed == packs.failed
    assert found.covers("TpChecked") == {"size", "kind"}
    assert found.covers("TpCheckedTypes") == {"input_types"}
    assert not found.covers("TpNumber")


def test_a_pack_that_ends_its_process_ends_no_other(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(InputError, match="exit code 3"):
        declared_by([tmp_path])
    (tmp_path / "bad.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(InputError, match="within 2 seconds"):
        declared_by([tmp_path], timeout=2)
    with pytest.raises(InputError, match="is not a folder"):
        declared_by([tmp_path / "nowhere"])
    assert not [name for name in sys.modules if name.endswith("_bad")]
