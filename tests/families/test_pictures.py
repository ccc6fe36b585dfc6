"""Whole workflows of every family against ComfyUI's latents and pictures, on narrow models."""

from __future__ import annotations

import pytest

from loraloom.session import Session
from tests.families.bench import Shelf, assert_measured, narrow_models, run_case, stated

CASES = [(family, case) for family in narrow_models() for case in stated(family)["cases"]]


@pytest.mark.parametrize(("family", "case"), CASES)
def test_a_workflow_gives_comfyuis_picture(family: str, case: str, session: Session, shelf: Shelf) -> None:
    assert_measured(run_case(session, shelf, narrow_models()[family], case), family, case)
