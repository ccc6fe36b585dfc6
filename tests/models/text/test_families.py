"""Prompts of the newer families against ComfyUI's figures, on narrow encoders with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from tests import narrow_models as narrow
from tests.models.text import figures

from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.encoder import encoder_kind
from loraloom.models.handles import TextEncoders
from loraloom.models.memory import Memory
from loraloom.models.text.encode import encode_prompt, recipe_of, templated
from loraloom.models.text.tokens import rules_for, tokenize

Open: TypeAlias = Callable[..., TextEncoders]

FAMILIES = {
    "z_image": ("lumina2", (narrow.write_qwen3_4b,)),
    "flux2_klein": ("flux2", (narrow.write_qwen3_4b,)),
}
NOWHERE = ModelFolders(())


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Family → its encoders, each file written once."""
    folder = tmp_path_factory.mktemp("encoders")

    @cache
    def written(write: Callable[[Path], Path]) -> Path:
        return write(folder / f"{write.__name__}.safetensors")

    def open_family(family: str) -> TextEncoders:
        kind, writers = FAMILIES[family]
        return open_text_encoders(tuple(written(write) for write in writers), kind)

    return open_family


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory("cpu", "fp32")


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_comfyuis(family: str, opened: Open) -> None:
    clip = opened(family)
    recipe = recipe_of(clip)
    for prompt in figures.stated()[family]["prompts"]:
        expected = figures.tokens(family, prompt)
        assert list(expected) == [use.key for use in recipe.uses]
        for use in recipe.uses:
            part = clip.part(use.encoder)
            assert part is not None
            rules = rules_for(encoder_kind(use.encoder), use, part.weights)
            (chunk,) = tokenize(templated(use, prompt), rules, lambda name: None).chunks
            assert [(t.token, t.weight) for t in chunk] == expected[use.key]


@pytest.mark.parametrize("family", FAMILIES)
def test_conditionings_are_comfyuis(family: str, opened: Open, memory: Memory) -> None:
    clip = opened(family)
    prompts = figures.stated()[family]["prompts"]
    for index in (0, 2):
        (cond,), warnings = encode_prompt(memory, clip, prompts[index], NOWHERE)
        assert not warnings
        assert figures.distance(cond.context, f"{family}|{index}") < 1e-5
        mask = figures.measured().get(f"{family}|{index}|attention_mask")
        if mask is not None:
            given = torch.ones(cond.context.shape[:2]) if cond.mask is None else cond.mask
            assert torch.equal(given.float(), torch.from_numpy(mask))
