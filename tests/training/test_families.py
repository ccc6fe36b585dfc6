"""SDXL and Flux.1 train by the same code: what is written finds its place in the base again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loraloom.errors import InputError
from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import load_lora
from loraloom.training.session import Session
from loraloom.training.settings import AdapterKind, AdapterSettings, ModelSettings, Settings
from loraloom.training.train import train
from tests.tiny_models import write_clip_l, write_flux, write_sdxl, write_t5, write_vae
from tests.training.conftest import MakeSettings


def _settings(
    make: MakeSettings, family: str, folder: Path, adapter: AdapterSettings | None = None
) -> Settings:
    made = make(adapter, steps=2)
    if family == "sdxl":
        model = ModelSettings(write_sdxl(folder / "sdxl.safetensors"))
    else:
        model = ModelSettings(
            write_flux(folder / "flux.safetensors"),
            (write_clip_l(folder / "clip_l.safetensors"), write_t5(folder / "t5.safetensors")),
            "flux",
            write_vae(folder / "ae.safetensors", latent=16),
        )
    return replace(made, model=model)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_what_was_trained_is_placed(make_settings: MakeSettings, tmp_path: Path, family: str) -> None:
    sessions: list[Session] = []
    settings = _settings(make_settings, family, tmp_path)
    trained = train(settings, on_ready=lambda session, step: sessions.append(session))
    session = sessions[0]
    assert session.family.name == family
    model = session.handles.model
    component = Component(family, model.weights.shapes, model.lora_aliases())
    assert trained.diffusers is not None
    for path in (trained.lora, trained.diffusers):
        loaded = load_lora(read_lora(path), {"model": component}, strict=True)
        placed = sum(len(patches) for patches in loaded.model.patches().values())
        assert placed == len(session.adapters["model"].modules)
    assert any(bool(t.any()) for name, t in load_file(trained.lora).items() if "lora_up" in name)


def test_both_encoders_of_sdxl_learn(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = _settings(make_settings, "sdxl", tmp_path, AdapterSettings(rank=2, text_encoder=True))
    tensors = load_file(train(settings).lora)
    for prefix in ("lora_te1_", "lora_te2_"):
        ups = [v for name, v in tensors.items() if name.startswith(prefix) and "lora_up" in name]
        assert ups and any(bool(up.any()) for up in ups)


def test_the_encoders_of_flux_stay_as_they_are(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = _settings(make_settings, "flux", tmp_path, AdapterSettings(rank=2, text_encoder=True))
    with pytest.raises(InputError, match=r"text encoders of Flux\.1"):
        train(settings)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_checkpointing_changes_nothing_but_memory(
    make_settings: MakeSettings, tmp_path: Path, family: str
) -> None:
    plain = _settings(make_settings, family, tmp_path)
    saving = replace(plain, output=tmp_path / "saving", run=replace(plain.run, checkpointing=True))
    one, other = load_file(train(plain).lora), load_file(train(saving).lora)
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_adapters_stay_float32_beside_bf16_weights(make_settings: MakeSettings, kind: AdapterKind) -> None:
    sessions: list[Session] = []
    made = make_settings(AdapterSettings(kind, rank=2), steps=1)
    settings = replace(made, run=replace(made.run, dtype="bf16"))
    train(settings, on_ready=lambda session, step: sessions.append(session))
    parameters = sessions[0].network_parameters().values()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert next(sessions[0].live.module.conv_in.parameters()).dtype == torch.bfloat16  # pyright: ignore[reportAttributeAccessIssue]
