"""Every family that is trained learns in its real format: what is written finds its place in the base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loraloom.errors import InputError
from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import Compat, load_lora
from loraloom.models.recognition import family_named
from loraloom.training.model import open_model
from loraloom.training.session import Session
from loraloom.training.settings import ModelSettings
from loraloom.training.train import train
from tests.families.bench import Narrow, Shelf, narrow_by_family
from tests.training.conftest import MakeSettings

TRAINED = [family for family in narrow_by_family() if (known := family_named(family)) and known.training]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("narrow"))


def model_of(shelf: Shelf, narrow: Narrow) -> ModelSettings:
    encoders = [
        shelf.put(f"text_encoders/{name}.safetensors", write) for name, write in narrow.encoders.items()
    ]
    vae = shelf.put(f"vae/{narrow.autoencoder.__name__}.safetensors", narrow.autoencoder)
    return ModelSettings(
        shelf.folder / "diffusion_models" / shelf.network(narrow),
        tuple(shelf.folder / "text_encoders" / name for name in encoders),
        narrow.clip_type,
        shelf.folder / "vae" / vae,
    )


@pytest.mark.parametrize("family", TRAINED)
def test_what_was_trained_is_placed(make_settings: MakeSettings, shelf: Shelf, family: str) -> None:
    assert (known := family_named(family)) is not None and known.training is not None
    sessions: list[Session] = []
    settings = replace(make_settings(steps=1), model=model_of(shelf, narrow_by_family()[family][0]))
    trained = train(settings, on_ready=lambda session, step: sessions.append(session))
    session = sessions[0]
    assert session.family is known
    model = session.handles.model
    component = Component(family, model.weights.shapes, model.lora_aliases())
    assert trained.diffusers is not None
    ways: tuple[tuple[Path, Compat], ...] = (
        (trained.lora, "trainer"),
        (trained.lora, "comfyui"),
        (trained.diffusers, "trainer"),
        (trained.diffusers, "comfyui"),
    )
    for path, compat in ways:
        loaded = load_lora(read_lora(path), {"model": component}, strict=True, compat=compat)
        placed = sum(len(patches) for patches in loaded.model.patches().values())
        assert placed == len(session.adapters["model"].modules)
    assert any(bool(t.any()) for name, t in load_file(trained.lora).items() if "lora_up" in name)


@pytest.mark.parametrize("other", ["krea2", "flux2"])
def test_the_autoencoder_of_another_family_is_refused(shelf: Shelf, other: str) -> None:
    own, foreign = (model_of(shelf, narrow_by_family()[name][0]) for name in ("z_image", other))
    assert open_model(own).model.family.name == "z_image"
    with pytest.raises(InputError, match="Z-Image wants a KL autoencoder with 16 channels"):
        open_model(replace(own, autoencoder=foreign.autoencoder))
