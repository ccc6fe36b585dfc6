"""Whole runs on a tiny model: what is written, that resuming changes nothing, that readers agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import read_lora
from loraloom.lora.load import load_lora
from loraloom.training.adapters import NAME
from loraloom.training.export import kohya_hashes
from loraloom.training.loop import StepReport
from loraloom.training.session import Session, open_session
from loraloom.training.settings import AdapterKind, AdapterSettings, SampleSettings
from loraloom.training.train import train
from tests.training.conftest import MakeSettings

KINDS: tuple[AdapterKind, ...] = ("lora", "locon", "dora", "loha", "lokr")


class _StopHere(Exception):
    pass


def _components(session: Session) -> dict[ComponentName, Component]:
    model, text = session.handles.model, session.handles.text
    shapes = {name: shape for part in text.parts for name, shape in part.weights.shapes.items()}
    return {
        "model": Component(model.family.name, model.weights.shapes, model.lora_aliases()),
        "clip": Component(model.family.name, shapes, text.lora_aliases()),
    }


def _trained_weights(session: Session) -> dict[str, Tensor]:
    """Native name → weight with the adapter merged in by peft itself."""
    placements = session.handles.model.blueprint.placements
    found: dict[str, Tensor] = {}
    for path, module in session.adapters["model"].modules.items():
        layer = cast("Any", module)  # peft's layer classes share these names, and no type says so
        layer.merge(safe_merge=False, adapter_names=[NAME])
        found[placements[f"{path}.weight"].native] = layer.base_layer.weight.detach()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_the_weights_that_were_trained(make_settings: MakeSettings, kind: AdapterKind) -> None:
    settings = make_settings(AdapterSettings(kind, rank=2, alpha=1.0, conv_rank=2))
    sessions: list[Session] = []
    trained = train(settings, on_ready=lambda session, step: sessions.append(session))
    session = sessions[0]
    loaded = load_lora(read_lora(trained.lora), _components(session), strict=True)
    expected = _trained_weights(session)
    patches = loaded.model.patches()
    assert patches.keys() == expected.keys()
    for native, patch in patches.items():
        base = session.handles.model.weights.read(native, torch.float32)
        ours = patch[0].apply(base.clone(), 1.0)
        delta = (expected[native].reshape(base.shape) - base).abs().max()
        assert delta > 0, native
        assert torch.allclose(ours, expected[native].reshape(base.shape), atol=2e-3 * float(delta) + 1e-6), (
            native
        )


def test_interrupted_runs_end_in_the_same_file(make_settings: MakeSettings, tmp_path: Path) -> None:
    whole = train(make_settings(steps=6, output=tmp_path / "whole"))
    settings = make_settings(steps=6, output=tmp_path / "parts")

    for stop in (3, 5):  # neither is a step that saves

        def stopping(report: StepReport, stop: int = stop) -> None:
            if report.step == stop:
                raise _StopHere

        with pytest.raises(_StopHere):
            train(settings, stopping)
    parts = train(settings)
    one, other = load_file(whole.lora), load_file(parts.lora)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.best is not None and parts.best is not None
    assert _header(whole.lora)["loraloom.validations"] == _header(parts.lora)["loraloom.validations"]


def test_a_run_that_is_told_to_stop_loses_no_step(make_settings: MakeSettings, tmp_path: Path) -> None:
    whole = train(make_settings(steps=6, output=tmp_path / "whole"))
    settings = make_settings(steps=6, output=tmp_path / "parts")

    def stopping(report: StepReport) -> None:
        if report.step == 3:  # no step that saves
            raise KeyboardInterrupt

    begun: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(settings, stopping)
    parts = train(settings, on_ready=lambda session, step: begun.append(step))
    assert begun == [3]
    one, other = load_file(whole.lora), load_file(parts.lora)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy", "adafactor"])
def test_every_optimizer_resumes(make_settings: MakeSettings, tmp_path: Path, optimizer: str) -> None:
    def settings(name: str):
        made = make_settings(steps=4, output=tmp_path / name)
        rate = 1.0 if optimizer == "prodigy" else 1e-2
        return replace(made, optimizer=replace(made.optimizer, name=optimizer, rate=rate))

    whole = load_file(train(settings("whole")).lora)

    def stopping(report: StepReport) -> None:
        if report.step == 3:
            raise _StopHere

    with pytest.raises(_StopHere):
        train(settings("parts"), stopping)
    parts = load_file(train(settings("parts")).lora)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(bool(value.any()) for key, value in whole.items() if "lora_up" in key)


def test_a_state_of_other_settings_is_refused(make_settings: MakeSettings) -> None:
    settings = make_settings(steps=2)
    train(settings)
    changed = replace(settings, optimizer=replace(settings.optimizer, rate=0.5))
    was = settings.optimizer.rate
    with pytest.raises(InputError, match=rf"other settings \(optimizer\.rate was {was}\): restore"):
        train(changed)


def test_accumulated_batches_are_one_larger_batch(make_settings: MakeSettings) -> None:
    reports: list[StepReport] = []
    train(make_settings(steps=2, accumulate=2), reports.append)
    assert [r.step for r in reports] == [1, 2]


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as handle:
        return handle.metadata()


def test_the_header_says_what_readers_look_for(make_settings: MakeSettings) -> None:
    trained = train(make_settings(steps=2))
    header = _header(trained.lora)
    assert header["modelspec.trigger_phrase"] == "redword"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["ss_network_module"] == "networks.lora"
    assert header["software"] == "Loraloom"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("2", "1.0")
    frequency = json.loads(header["ss_tag_frequency"])
    assert frequency["2_redword thing"]["redword"] >= 2
    from safetensors.torch import save

    bare = save(load_file(trained.lora))
    assert header["sshs_model_hash"] == kohya_hashes(bare)[0]


def test_the_text_encoder_learns_too(make_settings: MakeSettings) -> None:
    sessions: list[Session] = []
    settings = make_settings(AdapterSettings(rank=2, text_encoder=True))
    trained = train(settings, on_ready=lambda session, step: sessions.append(session))
    tensors = load_file(trained.lora)
    ups = [v for k, v in tensors.items() if k.startswith("lora_te_") and "lora_up" in k]
    assert ups and all(bool(up.any()) for up in ups)
    loaded = load_lora(read_lora(trained.lora), _components(sessions[0]), strict=True)
    assert len(loaded.clip.patches()) == len(ups)


def test_diffusers_reads_its_dialect(make_settings: MakeSettings) -> None:
    """The UNet part, loaded by diffusers' own mixin, changes the network as training did."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    sessions: list[Session] = []
    trained = train(make_settings(), on_ready=lambda session, step: sessions.append(session))
    assert trained.diffusers is not None
    session = sessions[0]
    blueprint = session.handles.model.blueprint
    theirs = blueprint.build()
    assert isinstance(theirs, UNet2DConditionModel)
    weights = session.handles.model.weights
    state = {
        name: weights.read(placement.native, torch.float32).reshape(theirs.state_dict()[name].shape)
        for name, placement in blueprint.placements.items()
    }
    theirs.load_state_dict(state)
    theirs.eval()
    tensors = {k: v.float() for k, v in load_file(trained.diffusers).items()}
    theirs.load_lora_adapter(tensors, prefix="unet")
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500.0])
    context = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        (ours,) = session.live.module(x, t, context, return_dict=False)
        (answer,) = theirs(x, t, context, return_dict=False)
    assert torch.allclose(ours, answer, atol=1e-3 * float(ours.abs().max()))


def test_samples_are_drawn_while_training(make_settings: MakeSettings) -> None:
    settings = replace(
        make_settings(steps=2), samples=SampleSettings(("redword, a thing",), every=2, steps=2, cfg=2.0)
    )
    train(settings)
    assert [p.name for p in (settings.output / "samples").iterdir()] == ["tiny-000002-00.png"]


def test_a_fresh_adapter_changes_nothing(make_settings: MakeSettings) -> None:
    x, t = torch.ones(1, 4, 8, 8), torch.tensor([10.0])
    context = torch.ones(1, 77, 64)
    with torch.no_grad():
        outputs: list[Tensor] = []
        for kind in KINDS:
            session = open_session(make_settings(AdapterSettings(kind, rank=2)))
            outputs.append(session.live.module(x, t, context, return_dict=False)[0])
    assert all(torch.allclose(outputs[0], other, atol=1e-5) for other in outputs)
