"""Drawings by plain settings, as the page makes them, on narrow models of the newer families."""

from __future__ import annotations

import pytest

from loraloom.models.recognition import family_named
from loraloom.session import Session
from loraloom.workflow.drawing import DrawSettings, graph_of
from tests.families.bench import Shelf, narrow_models


@pytest.mark.parametrize("name", ["krea2", "qwen_image21", "z_image"])
def test_a_drawing_is_made(name: str, session: Session, shelf: Shelf) -> None:
    narrow, family = narrow_models()[name], family_named(name)
    assert family is not None
    encoders = narrow.encoders.items()
    settings = DrawSettings(
        base=shelf.network(narrow),
        base_kind="diffusion_models",
        family=name,
        channels=family.latents.channels,
        text_encoders=tuple(shelf.put(f"text_encoders/{one}.safetensors", write) for one, write in encoders),
        text_kind=narrow.clip_type,
        vae=shelf.put(f"vae/{narrow.autoencoder.__name__}.safetensors", narrow.autoencoder),
        prompt="two cats",
        width=96,
        height=64,
        steps=1,
        cfg=1.0,
    )
    (picture,) = session.run(graph_of(settings)).images
    assert picture.size == (96, 64)
