"""Workflows with pictures and reference latents against ComfyUI's, on narrow models."""

from __future__ import annotations

import pytest

from loraloom.session import Session
from tests.families.bench import Shelf, assert_measured, edit_graph_of, measured, narrow_models, stated

EDITS = [
    (family, case)
    for family, narrow in narrow_models().items()
    if narrow.edit is not None
    for case in stated(f"{family}_edit")["cases"]
    if f"{case}|latent" in measured(f"{family}_edit")
]


@pytest.mark.parametrize(("family", "case"), EDITS)
def test_an_edit_gives_comfyuis_picture(family: str, case: str, session: Session, shelf: Shelf) -> None:
    run = session.run(edit_graph_of(shelf, narrow_models()[family], case))
    assert_measured(run, f"{family}_edit", case)
