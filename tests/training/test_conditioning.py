"""Captions as conditionings: kept whole in the cache, and the same with gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.encoder import encoder_kind
from loraloom.models.recipe import Use
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt
from loraloom.models.text.tokens import rules_for, tokenize
from loraloom.models.text.vocabularies import clip_tokenizer
from loraloom.training.conditioning import CachedText, LearningText, unweighted
from loraloom.training.model import LiveText
from loraloom.weights.source import WeightSource
from tests import narrow_models as narrow
from tests.conftest import NarrowFile


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (narrow.write_qwen3_4b, "flux2"),
        (narrow.write_qwen3_06b, "stable_diffusion"),
        (narrow.write_qwen25vl, "qwen_image"),
    ],
)
def test_conditionings_of_language_models(
    narrow_file: NarrowFile, tmp_path: Path, write: narrow.Writer, kind: str
) -> None:
    clip = open_text_encoders((narrow_file(write),), kind)
    memory = Memory("cpu", "fp32")
    live = LiveText(memory.text(clip), memory.device)
    (expected,), _ = encode_prompt(memory, clip, "two cats", ModelFolders(()))
    for _ in range(2):
        found = CachedText(live, clip, tmp_path, "key")("two cats")
        assert torch.equal(found.context, expected.context)
        assert (found.mask is None) == (expected.mask is None)
        assert found.mask is None or expected.mask is None or torch.equal(found.mask, expected.mask)
        assert {name: t.tolist() for name, t in found.extras.items()} == {
            name: t.tolist() for name, t in expected.extras.items()
        }
    assert len(list(tmp_path.iterdir())) == 1
    module = live.modules[clip.parts[0].role].requires_grad_(True)
    learning = LearningText(live, clip)("two cats")
    torch.testing.assert_close(learning.context.detach(), expected.context)
    learning.context.sum().backward()
    assert module.get_parameter("model.layers.0.mlp.up_proj.weight").grad is not None


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (narrow.write_clip_l, "stable_diffusion"),
        (narrow.write_t5, "pixart"),
        (narrow.write_qwen3_06b, "stable_diffusion"),
    ],
)
def test_a_batch_is_encoded_together_as_each_alone(
    narrow_file: NarrowFile, write: narrow.Writer, kind: str
) -> None:
    clip = open_text_encoders((narrow_file(write),), kind)
    memory = Memory("cpu", "fp32")
    live = LiveText(memory.text(clip), memory.device)
    live.modules[clip.parts[0].role].requires_grad_(True)
    learning = LearningText(live, clip)
    captions = ["two cats", "a rose, " * 60, "two cats", ""]
    found = learning.together(captions)
    assert found[0] is found[2]
    for caption, cond in zip(captions, found, strict=True):
        alone = learning(caption)
        torch.testing.assert_close(cond.context, alone.context)
        assert (cond.pooled is None) == (alone.pooled is None)
        if cond.pooled is not None:
            torch.testing.assert_close(cond.pooled, alone.pooled)


CAPTIONS = ["a (cat:1.4)", r"c:\pictures (x)", r"\(cat\) \\n", "((a))"]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_brackets_and_backslashes_of_captions_are_letters(caption: str) -> None:
    rules = rules_for(encoder_kind("clip_l"), Use("clip_l", "l"), WeightSource({}))
    (chunk,) = tokenize(unweighted(caption), rules, lambda name: None).chunks
    plain = clip_tokenizer().encode(caption).ids
    assert [item.token for item in chunk][1 : len(plain) + 1] == plain
    assert {item.weight for item in chunk} == {1.0}
