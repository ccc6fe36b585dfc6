"""Texts written by a narrow language model, token for token ComfyUI's."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from tests import narrow_models as narrow
from tests import tiny_models as tiny
from tests.conftest import NarrowFile
from tests.models.text import figures

from loraloom.errors import InputError
from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.handles import TextEncoders
from loraloom.models.residency.memory import Memory
from loraloom.models.text.generate import (
    Drawing,
    Question,
    draw,
    generate_text,
    question_tokens,
    split_thought,
)
from loraloom.models.text.templates import DESCRIBE
from loraloom.models.text.vocabularies import qwen_tokenizer

NOWHERE = ModelFolders(())
CASES: dict[str, Any] = figures.stated()["textgen_krea2"]


@pytest.fixture(scope="module")
def krea2(narrow_file: NarrowFile) -> TextEncoders:
    return open_text_encoders((narrow_file(narrow.write_qwen3vl_4b),), "krea2")


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory("cpu", "fp32")


def drawing(said: dict[str, Any]) -> Drawing | None:
    if said["sampling_mode"] == "off":
        return None
    return Drawing(
        seed=said["seed"],
        temperature=said["temperature"],
        top_k=said["top_k"],
        top_p=said["top_p"],
        min_p=said["min_p"],
        repetition=said["repetition_penalty"],
        presence=said["presence_penalty"],
    )


@pytest.mark.parametrize("name", CASES)
def test_texts_are_comfyuis(name: str, krea2: TextEncoders, memory: Memory) -> None:
    case = CASES[name]
    shown = torch.from_numpy(figures.measured()["textgen_krea2|pic"]).float() / 255
    question = Question(
        case["prompt"],
        is_whole=not case.get("use_default_template", True),
        thinks=case.get("thinking", False),
        pictures=(shown,) if "picture" in case else (),
    )
    tokens = [
        t.token if isinstance(t.token, int) else "image" for t in question_tokens(krea2, question, NOWHERE)
    ]
    assert tokens == case["tokens_in"]
    counts: list[int] = []
    text = generate_text(
        memory, krea2, question, NOWHERE, case["max_length"], drawing(case["sampling_mode"]), counts.append
    )
    assert text == qwen_tokenizer().decode(case["tokens_out"])
    assert counts == list(range(1, len(case["tokens_out"]) + 1))


def test_a_drawn_token_is_among_the_likeliest() -> None:
    scores = torch.tensor([0.0, 5.0, 4.9, -3.0])
    source = torch.Generator().manual_seed(1)
    only = Drawing(0, temperature=1.0, top_k=2, top_p=1.0, min_p=0.0)
    assert {draw(scores, (), only, source) for _ in range(50)} == {1, 2}
    barred = Drawing(0, temperature=1.0, top_k=1, top_p=1.0, min_p=0.0, repetition=1.0, presence=3.0)
    assert draw(scores, (1,), barred, source) == 2


def test_a_system_prompt_stands_in_the_place_of_the_templates(krea2: TextEncoders) -> None:
    def said(system: str, text: str = "a cat") -> str:
        asked = question_tokens(krea2, Question(text, system=system, thinks=True), NOWHERE)
        return qwen_tokenizer().decode([cast(int, t.token) for t in asked], skip_special_tokens=False)

    user = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    assert said("") == DESCRIBE.format("a cat")
    assert said("Be {brief}.\n") == "<|im_start|>system\nBe {brief}.\n<|im_end|>\n" + user
    assert said("Be brief.", "<|im_start|>user\nhello") == "<|im_start|>user\nhello"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", ("a cat", "")),
        ("<think>\nhm\n</think>\n\na cat", ("a cat", "hm")),
        ("<think>\nhm", ("", "hm")),
        ("a <think> cat", ("a <think> cat", "")),
    ],
)
def test_thoughts_are_told_from_answers(text: str, expected: tuple[str, str]) -> None:
    assert split_thought(text) == expected


def test_encoders_that_write_nothing_say_so(tmp_path: Any) -> None:
    clip = open_text_encoders((tiny.write_clip_l(tmp_path / "l.safetensors"),), "stable_diffusion")
    with pytest.raises(InputError, match="write no text"):
        generate_text(Memory("cpu", "fp32"), clip, Question("a"), NOWHERE, 4)
