"""Every published text encoder is recognised as what it is, built, and every weight of it placed or known to
be of no use."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.residency.slots import find_slots
from loraloom.weights.meta import build_unfilled
from tests.published import Fixture, fixtures, write

TYPES = {
    "clip_l": "stable_diffusion",
    "clip_g": "stable_diffusion",
    "clip_h": "stable_diffusion",
    "t5xxl": "sd3",
    "qwen3": "flux2",
    "qwen25vl": "qwen_image",
    "qwen3vl": "flux2",
    "mistral3": "flux2",
    "gemma2": "lumina2",
}
"""Kind → a type of loader that takes it alone."""
TYPE_OF_FILE = {"qwen_3_06b": "stable_diffusion"}
TEXT = {fixture.name: fixture for fixture in fixtures("text")}


@pytest.mark.parametrize("fixture", TEXT.values(), ids=TEXT)
def test_published_text_encoders_fit(tmp_path: Path, fixture: Fixture) -> None:
    kind = TYPE_OF_FILE.get(fixture.name, TYPES[fixture.family])
    (part,) = open_text_encoders((write(fixture, tmp_path),), kind).parts
    assert part.role == fixture.family
    blueprint = part.blueprint
    slots = find_slots(build_unfilled(blueprint.build), blueprint, part.weights)
    assert len(slots) > 100
