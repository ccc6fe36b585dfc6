"""Adapters train on a frozen base in every storage format, and the base stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import hashes_of
from loraloom.lora.load import load_lora
from loraloom.training.session import Session
from loraloom.training.settings import AdapterKind, AdapterSettings, ModelSettings, Settings
from loraloom.training.train import train
from loraloom.weights.layers import PackedLinear
from loraloom.weights.packed import Packed
from loraloom.weights.quantise import quantise_file
from tests.tiny_models import write_clip_l, write_flux, write_t5, write_vae
from tests.training.conftest import MakeSettings

Quantised = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_flux(folder / "flux.safetensors", single=1)
    write_clip_l(folder / "clip_l.safetensors")
    write_t5(folder / "t5.safetensors")
    write_vae(folder / "ae.safetensors", latent=16)
    return folder


def settings_on(
    make: MakeSettings, folder: Path, to: str, kind: AdapterKind = "lora", steps: int = 2
) -> Settings:
    base = folder / ("flux.safetensors" if to == "bf16" else to.replace(":", "_"))
    if not base.exists():
        quantise_file(folder / "flux.safetensors", to, base, architecture="flux")
    encoders = (folder / "clip_l.safetensors", folder / "t5.safetensors")
    model = ModelSettings(base, encoders, "flux", folder / "ae.safetensors")
    return replace(make(AdapterSettings(kind, rank=2), steps=steps), model=model)


def packed_in(session: Session) -> dict[str, Packed]:
    layers = session.live.module.named_modules()
    return {name: layer.packed for name, layer in layers if isinstance(layer, PackedLinear) and layer.packed}


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        *((to, "lora") for to in ("int8", "fp8", "mxfp8", "nvfp4", "convrot_w4a4:64", "gguf:Q8_0")),
        *(("int8:convrot64", kind) for kind in ("dora", "loha", "lokr")),
        ("gguf:Q4_0", "dora"),
    ],
)
def test_what_was_trained_on_a_quantised_base_is_placed_on_it(
    make_settings: MakeSettings, folder: Path, to: str, kind: AdapterKind
) -> None:
    settings = settings_on(make_settings, folder, to, kind)
    sessions: list[Session] = []
    before: list[dict[str, Packed]] = []

    def ready(session: Session, step: int) -> None:
        sessions.append(session)
        before.append(packed_in(session))

    trained = train(settings, on_ready=ready)
    session = sessions[0]
    assert before[0] == packed_in(session) and len(before[0]) > 10
    assert {parameter.dtype for parameter in session.network_parameters().values()} == {torch.float32}
    weights = session.handles.model.weights
    component = Component(
        "flux", weights.shapes, session.handles.model.lora_aliases(), weights.map, weights.quantised
    )
    loaded = load_lora(read_lora(trained.lora), {"model": component}, strict=True)
    assert sum(len(p) for p in loaded.model.patches().values()) == len(session.adapters["model"].modules)
    (way,) = loaded.measured(hashes_of(trained.lora)).survival
    assert way.beside > 10 if kind == "lora" else way.beside + way.merged > 10
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(trained.lora).values())


def test_the_first_step_on_a_quantised_base_is_near_that_on_the_wide_one(
    make_settings: MakeSettings, folder: Path
) -> None:
    """Same data, same noise: what the adapters learn differs by no more than the base does."""
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for to in ("bf16", "int8"):
        settings = settings_on(make_settings, folder, to, steps=1)
        tensors[to] = load_file(train(replace(settings, output=settings.output / to)).lora)
    for name, wide in tensors["bf16"].items():
        if "lora_up" in name:
            cosine = torch.nn.functional.cosine_similarity(wide.flatten(), tensors["int8"][name].flatten(), 0)
            assert float(cosine) > 0.8, name
