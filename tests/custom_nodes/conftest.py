from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loraloom.custom_nodes.load import Packs, load_packs
from loraloom.engine.node import NodeType
from loraloom.folders import ModelFolders

CUSTOM_NODES = Path(__file__).parent / "packs"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> ModelFolders:
    models = tmp_path_factory.mktemp("models")
    (models / "loras").mkdir()
    (models / "loras/rose.safetensors").write_bytes(b"-")
    return ModelFolders([models], input_dir=models / "input")


@pytest.fixture(scope="module")
def packs(folders: ModelFolders) -> Iterator[Packs]:
    loaded = load_packs([CUSTOM_NODES], folders=folders)
    yield loaded
    loaded.close()


@pytest.fixture
def nodes(packs: Packs) -> dict[str, NodeType]:
    return packs.nodes
