"""Whole workflows of every family on the simulated device or a real one, against ComfyUI's figures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loraloom.engine.node import collect
from loraloom.session import Session
from tests.families import figure_nodes
from tests.families.bench import (
    Shelf,
    assert_measured,
    edit_graph_of,
    goes_without,
    measured,
    narrow_models,
    run_case,
    stated,
)
from tests.sim_device.device import NAME, WIDER, Real, Sim

CASES = [
    pytest.param(family, case, marks=[pytest.mark.heavy] if number else [])
    for family in narrow_models()
    for number, case in enumerate(stated(family)["cases"])
    if not goes_without(family, case)
]
"""One of each family in every run: they take seconds."""
EDITS = [
    (family, case)
    for family, narrow in narrow_models().items()
    if narrow.edit is not None
    for case in stated(f"{family}_edit")["cases"]
    if f"{case}|latent" in measured(f"{family}_edit")
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def session(device: Sim | Real, shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    output = tmp_path_factory.mktemp("output")
    nodes = collect(figure_nodes)
    with Session(
        shelf.folder, output_dir=output, device=NAME, dtype="fp32", compat="comfyui", nodes=nodes
    ) as made:
        yield made


@pytest.mark.parametrize(("family", "case"), CASES)
def test_a_workflow_gives_comfyuis_picture(family: str, case: str, session: Session, shelf: Shelf) -> None:
    assert_measured(run_case(session, shelf, narrow_models()[family], case), family, case, WIDER)


@pytest.mark.heavy
@pytest.mark.parametrize(("family", "case"), EDITS)
def test_an_edit_gives_comfyuis_picture(family: str, case: str, session: Session, shelf: Shelf) -> None:
    run = session.run(edit_graph_of(shelf, narrow_models()[family], case))
    assert_measured(run, f"{family}_edit", case, WIDER)
