"""Prompts are encoded once for a text and a state of the encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.handles import TextEncoders
from loraloom.nodes import text
from loraloom.runtime import prompts
from loraloom.runtime.encodings import Encodings
from loraloom.runtime.services import services
from loraloom.sampling.types import Cond
from loraloom.weights.patch import PatchUse
from tests import tiny_models
from tests.models.plain_loras import plain_lora
from tests.nodes.runs import PlainRun


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    return PlainRun(tmp_path)


@pytest.fixture
def clip(tmp_path: Path) -> TextEncoders:
    _, clip, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    assert clip is not None
    return clip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The texts that are really encoded."""
    seen: list[object] = []
    real = prompts.encode_prompt

    def counted(memory: Any, clip: Any, text: object, *args: Any, **given: Any) -> Any:
        seen.append(text)
        return real(memory, clip, text, *args, **given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(prompts, "encode_prompt", counted)
    return seen


def test_a_text_is_encoded_once(run: PlainRun, clip: TextEncoders, calls: list[object]) -> None:
    (first,) = text.encode_text("a red rose", clip, run=run)
    (again,) = text.encode_text("a red rose", clip.with_clip_skip(-1).with_clip_skip(-1), run=run)
    (same,) = text.encode_text("a red rose", clip, run=run)
    assert calls == ["a red rose", "a red rose"]  # once for each clip_skip
    assert torch.equal(first.context, same.context) and again is not first
    services(run).encodings.clear()
    text.encode_text("a red rose", clip, run=run)
    assert len(calls) == 3


def test_options_are_put_on_each_time(run: PlainRun, clip: TextEncoders, calls: list[object]) -> None:
    (plain,) = prompts.encode(clip, "a", {}, run)
    (sized,) = prompts.encode(clip, "a", {"width": 8}, run)
    assert (plain.options, sized.options) == ({}, {"width": 8}) and calls == ["a"]


def test_warnings_are_told_each_time(run: PlainRun, clip: TextEncoders, calls: list[object]) -> None:
    for _ in range(2):
        text.encode_text("a embedding:nowhere", clip, run=run)
    assert len(run.warnings) == 2 and len(calls) == 1


def test_an_overwritten_embedding_is_read_again(
    run: PlainRun, clip: TextEncoders, calls: list[object], tmp_path: Path
) -> None:
    path = tmp_path / "models" / "embeddings" / "word.safetensors"
    path.parent.mkdir(parents=True)
    contexts: list[torch.Tensor] = []
    for value in (0.1, 0.9):
        save_file({"emb_params": torch.full((2, 64), value)}, path)
        (cond,) = text.encode_text("a embedding:word", clip, run=run)
        contexts.append(cond.context)
        path.unlink()
    assert len(calls) == 2 and not torch.equal(*contexts)


def test_another_strength_on_the_encoders_is_another_state(
    run: PlainRun, clip: TextEncoders, calls: list[object]
) -> None:
    native = next(name for name in clip.parts[0].weights.shapes if name.endswith("q_proj.weight"))
    source = plain_lora("one", {native: clip.parts[0].weights.shapes[native]})
    contexts = [
        text.encode_text("a", clip.with_lora(PatchUse(source, strength)), run=run)[0].context
        for strength in (0.5, 1.0, 0.5)
    ]
    assert len(calls) == 2
    assert torch.equal(contexts[0], contexts[2]) and not torch.equal(contexts[0], contexts[1])


def test_the_latest_stay() -> None:
    kept = Encodings(most=2 * 4 * 10)

    def made(value: float) -> Any:
        return lambda: ((Cond(torch.full((1, 1, 10), value)),), ())

    for name in "abac":
        kept.get(name, made(float(ord(name))))
    assert kept.nbytes == 80
    gone: list[str] = []
    for name in "acb":
        kept.get(name, lambda name=name: (gone.append(name), made(0.0)())[1])
    assert gone == ["b"]
