"""Whole workflows of every family against ComfyUI's latents and pictures, on narrow models."""

from __future__ import annotations

import pytest

from loraloom.session import NodeFailure, Session
from tests.families.bench import Shelf, assert_measured, goes_without, narrow_models, run_case, stated

ALL = [(family, case) for family in narrow_models() for case in stated(family)["cases"]]
WITHOUT = [one for one in ALL if goes_without(*one)]
CASES = [one for one in ALL if one not in WITHOUT]


@pytest.mark.parametrize(("family", "case"), CASES)
def test_a_workflow_gives_comfyuis_picture(family: str, case: str, session: Session, shelf: Shelf) -> None:
    assert_measured(run_case(session, shelf, narrow_models()[family], case), family, case)


@pytest.mark.parametrize(("family", "case"), WITHOUT)
def test_a_lora_that_comfyui_goes_without_is_told(
    family: str, case: str, session: Session, shelf: Shelf
) -> None:
    with pytest.raises(NodeFailure, match="nothing of this LoRA could be applied.*leave --compat comfyui"):
        run_case(session, shelf, narrow_models()[family], case)
