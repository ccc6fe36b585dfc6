"""Whole workflows of every family against ComfyUI's latents and pictures, on narrow models."""

from __future__ import annotations

import pytest

from loraloom.session import NodeFailure, Session
from tests.families.bench import Shelf, assert_measured, narrow_models, run_case, stated


def _goes_without(family: str, case: str) -> bool:
    """Whether ComfyUI knows no name in a LoRA file of the case."""
    files = (
        stated(family)["lora"][f"{kind}.safetensors"] for kind, _ in stated(family)["cases"][case]["loras"]
    )
    return any(file["weights_changed"] == 0 for file in files)


ALL = [(family, case) for family in narrow_models() for case in stated(family)["cases"]]
WITHOUT = [one for one in ALL if _goes_without(*one)]
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
