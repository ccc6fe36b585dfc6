"""One shelf of narrow models and one session for all families."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loraloom.engine.node import collect
from loraloom.session import Session
from tests.families import figure_nodes
from tests.families.bench import Shelf


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="package")
def session(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """compat: the figures are ComfyUI's, which does not place every module of every LoRA file."""
    output = tmp_path_factory.mktemp("output")
    nodes = collect(figure_nodes)
    with Session(shelf.folder, output_dir=output, dtype="fp32", compat="comfyui", nodes=nodes) as made:
        yield made
