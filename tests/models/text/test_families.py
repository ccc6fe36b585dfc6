"""Prompts of the newer families against ComfyUI's figures, on narrow encoders with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from safetensors.torch import save_file
from tests import narrow_models as narrow
from tests.conftest import NarrowFile
from tests.models.text import figures

from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.encoder import encoder_kind
from loraloom.models.handles import TextEncoders
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt, recipe_of, templated
from loraloom.models.text.tokens import rules_for, tokenize
from loraloom.models.text.vocabularies import qwen_tokenizer
from loraloom.weights.source import WeightSource

Open: TypeAlias = Callable[..., TextEncoders]

FAMILIES = {
    "z_image": ("lumina2", (narrow.write_qwen3_4b,)),
    "flux2_klein": ("flux2", (narrow.write_qwen3_4b,)),
    "flux2_dev": ("flux2", (narrow.write_mistral,)),
    "qwen_image": ("qwen_image", (narrow.write_qwen25vl,)),
    "qwen_image21": ("qwen_image", (narrow.write_qwen3vl_8b,)),
    "krea2": ("krea2", (narrow.write_qwen3vl_4b,)),
    "lumina2": ("lumina2", (narrow.write_gemma2,)),
    "anima": ("stable_diffusion", (narrow.write_qwen3_06b,)),
    "sd35": ("sd3", (narrow.write_clip_g, narrow.write_clip_l)),
    "sd35_t5": ("sd3", (narrow.write_clip_l, narrow.write_wide_t5, narrow.write_clip_g)),
    "chroma": ("chroma", (narrow.write_t5,)),
    "flux1": ("flux", (narrow.write_t5, narrow.write_clip_l)),
}
NOWHERE = ModelFolders(())


@pytest.fixture(scope="module")
def opened(narrow_file: NarrowFile) -> Open:
    """Family → its encoders."""

    def open_family(family: str) -> TextEncoders:
        kind, writers = FAMILIES[family]
        return open_text_encoders(tuple(narrow_file(write) for write in writers), kind)

    return open_family


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory("cpu", "fp32")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "flux1"])
def test_tokens_are_comfyuis(family: str, opened: Open) -> None:
    clip = opened(family)
    recipe, prompts = recipe_of(clip), figures.stated()[family]["prompts"]
    for prompt in prompts:
        for key, expected in figures.tokens(family, prompt).items():
            use = next(use for use in recipe.uses if use.key == key)
            part = clip.part(use.encoder)
            weights = WeightSource({}) if part is None else part.weights
            rules = rules_for(encoder_kind(use.encoder), use, weights)
            (chunk,) = tokenize(templated(use, prompt), rules, lambda name: None).chunks
            assert [(t.token, t.weight) for t in chunk] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_conditionings_are_comfyuis(family: str, opened: Open, memory: Memory) -> None:
    clip = opened(family)
    prompts = figures.stated()[family]["prompts"]
    for index in (0, 1) if family == "flux1" else (0, 1, 2):
        (cond,), warnings = encode_prompt(memory, clip, prompts[index], NOWHERE)
        assert not warnings
        assert figures.distance(cond.context, f"{family}|{index}") < 1e-5
        if f"{family}|{index}|pooled_output" in figures.measured():
            assert cond.pooled is not None
            assert figures.distance(cond.pooled, f"{family}|{index}|pooled_output") < 1e-5
        for name, given in cond.extras.items():
            assert given.flatten().tolist() == figures.measured()[f"{family}|{index}|{name}"].tolist()
        mask = figures.measured().get(f"{family}|{index}|attention_mask")
        if mask is not None:
            given = torch.ones(cond.context.shape[:2]) if cond.mask is None else cond.mask
            assert torch.equal(given.float(), torch.from_numpy(mask))


def test_embeddings_stand_in_templates(opened: Open, memory: Memory, tmp_path: Path) -> None:
    """Token vectors as an embedding give what the tokens give, wherever they stand."""
    clip = opened("z_image")
    part = clip.part("qwen3")
    assert part is not None
    cat = qwen_tokenizer().encode(" cat").ids
    vectors = part.weights.read("qwen3.transformer.model.embed_tokens.weight")[cat]
    (tmp_path / "embeddings").mkdir()
    save_file({"qwen3_4b": vectors, "other": torch.zeros(3, 7)}, tmp_path / "embeddings/cat.safetensors")
    folders = ModelFolders([tmp_path])
    (named,), warnings = encode_prompt(memory, clip, "a embedding:cat", folders)
    (plain,), _ = encode_prompt(memory, clip, "a cat", folders)
    assert not warnings
    torch.testing.assert_close(named.context, plain.context)
    _, (warning,) = encode_prompt(memory, clip, "a embedding:dog", folders)
    assert warning.name == "dog"


def test_a_whole_chat_needs_no_template(opened: Open, memory: Memory) -> None:
    text = "two cats"
    qwen, z_image = opened("qwen_image"), opened("z_image")
    (plain,), _ = encode_prompt(memory, qwen, text, NOWHERE)
    (whole,), _ = encode_prompt(memory, qwen, templated(recipe_of(qwen).uses[0], text), NOWHERE)
    assert torch.equal(plain.context, whole.context)
    (once,), _ = encode_prompt(memory, z_image, text, NOWHERE)
    (twice,), _ = encode_prompt(memory, z_image, templated(recipe_of(z_image).uses[0], text), NOWHERE)
    assert twice.context.shape[1] == once.context.shape[1] + 8


@pytest.mark.parametrize("family", ["z_image", "flux2_klein", "qwen_image", "qwen_image21", "krea2"])
def test_nothing_sees_what_stands_behind_the_end_of_a_text(family: str, opened: Open, memory: Memory) -> None:
    """Written in a prompt, the mark of the end is padding as ComfyUI reads it, and so is all that follows."""
    clip = opened(family)
    prompts = ("a<|endoftext|> cat", "a<|endoftext|> dog")
    (cat,), (dog,) = (encode_prompt(memory, clip, prompt, NOWHERE)[0] for prompt in prompts)
    end = recipe_of(clip).uses[0].template.partition("{}")[2]
    count = len(qwen_tokenizer().encode(end).ids) if family != "flux2_klein" else 64
    torch.testing.assert_close(cat.context[:, -count:], dog.context[:, -count:])
    assert not torch.equal(cat.context, dog.context)


def test_stand_ins_for_missing_encoders(opened: Open, memory: Memory) -> None:
    """Stable Diffusion 3 with one of its encoders: zeros of the real widths."""
    clip = opened("sd35_t5")
    text = TextEncoders("sd3", tuple(part for part in clip.parts if part.role == "clip_g"))
    (cond,), _ = encode_prompt(memory, text, "two cats", NOWHERE)
    assert cond.pooled is not None
    assert cond.context.shape == (1, 77, 4096) and cond.pooled.shape == (1, 768 + 128)
    assert not cond.context[..., :768].any() and not cond.context[..., 768 + 128 :].any()
    assert not cond.pooled[:, :768].any() and cond.pooled[:, 768:].any()
    only_t5 = TextEncoders("sd3", tuple(part for part in clip.parts if part.role == "t5xxl"))
    (cond,), _ = encode_prompt(memory, only_t5, "two cats", NOWHERE)
    assert cond.pooled is not None
    assert cond.context.shape[1] == 77 and cond.pooled.shape == (1, 2048) and not cond.pooled.any()
