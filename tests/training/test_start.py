"""Trainings that go on from a LoRA file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraloom.errors import InputError
from loraloom.training.session import open_session
from loraloom.training.settings import AdapterKind, AdapterSettings, Settings
from loraloom.training.train import kohya_tensors, train

MakeSettings = Callable[..., Settings]


@pytest.mark.parametrize("kind", ["lora", "locon", "dora", "loha"])
def test_a_training_starts_with_what_the_file_holds(
    kind: AdapterKind, make_settings: MakeSettings, tmp_path: Path
) -> None:
    text = kind == "lora"
    first = train(make_settings(AdapterSettings(kind, rank=2, alpha=1.0, text_encoder=text), steps=2))
    adapter = AdapterSettings(kind, rank=2, alpha=1.0, text_encoder=text, start=first.lora)
    settings = make_settings(adapter, steps=1, output=tmp_path / "second")
    session = open_session(settings)
    made, stored = kohya_tensors(session.adapters, session.family), load_file(first.lora)
    assert made.keys() == stored.keys()
    assert all(torch.equal(made[name].half(), stored[name].half()) for name in stored)
    moved = load_file(train(settings).lora)
    assert any(not torch.equal(moved[name], stored[name]) for name in stored)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 3, "alpha": 1.0}, r"is 2×[\d×]+; adapter.rank and the base make it 3×"),
        ({"rank": 2, "alpha": 2.0}, "has alpha 1, adapter.alpha makes it 2"),
        (
            {"rank": 2, "alpha": 1.0, "text_encoder": True},
            "and holds no lora_te.* set adapter.text_encoder to false",
        ),
        ({"kind": "loha", "rank": 2, "alpha": 1.0}, "holds .* of the same kind and layers"),
    ],
)
def test_a_file_of_another_shape_is_refused(
    given: dict[str, object], said: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    first = train(make_settings(steps=1))
    adapter = AdapterSettings(**given, start=first.lora)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=said):
        open_session(make_settings(adapter, output=tmp_path / "second"))


def test_a_file_with_a_part_for_the_text_encoder_asks_for_its_training(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    first = train(make_settings(AdapterSettings(rank=2, alpha=1.0, text_encoder=True), steps=1))
    adapter = AdapterSettings(rank=2, alpha=1.0, start=first.lora)
    with pytest.raises(InputError, match=r"also holds lora_te.* set adapter.text_encoder to true"):
        open_session(make_settings(adapter, output=tmp_path / "second"))


@pytest.mark.parametrize(
    ("name", "said"), [("nothing.safetensors", "no such file"), ("", "this is a directory")]
)
def test_a_file_that_cannot_be_opened_is_told_before_pictures_are_encoded(
    name: str, said: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    adapter = AdapterSettings(rank=2, alpha=1.0, start=tmp_path / name)
    with pytest.raises(InputError, match=f"adapter.start: .*{said}"):
        open_session(make_settings(adapter, output=tmp_path / "run"))
    assert not (tmp_path / "run" / "cache").exists()


def test_a_file_that_is_not_finite_is_refused(make_settings: MakeSettings, tmp_path: Path) -> None:
    first = train(make_settings(steps=1))
    broken = load_file(first.lora)
    name = next(name for name in broken if name.endswith("lora_up.weight"))
    broken[name][0, 0] = torch.nan
    save_file(broken, tmp_path / "broken.safetensors")
    adapter = AdapterSettings(rank=2, alpha=1.0, start=tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match="is not finite"):
        open_session(make_settings(adapter, output=tmp_path / "second"))
