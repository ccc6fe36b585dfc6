"""Token numbers, weights and chunks against ComfyUI's, and the rules of chunks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from loraloom.models.encoder import encoder_kind
from loraloom.models.library_class import library_class
from loraloom.models.recipe import Use
from loraloom.models.text.tokens import Chunk, TokenRules, Tokens, rules_for, tokenize
from loraloom.models.text.vocabularies import clip_tokenizer
from loraloom.weights.source import WeightSource

PARITY = json.loads((Path(__file__).parents[2] / "data/parity/tokens.json").read_text("utf-8"))
OLDER = "日本語のプロンプト 🌹 café naïve"
"""Measured with transformers 4, which set ideographs apart; the figures of the families are those of 5."""
VECTORS = {"testembed": 2, "testembed_fp16_8": 8, "many": 20}


def rules(encoder: str, min_length: int = 0) -> TokenRules:
    return rules_for(encoder_kind(encoder), Use(encoder, encoder, min_length=min_length), WeightSource({}))


CLIP_L_RULES, OPEN_CLIP_RULES, T5_RULES = rules("clip_l"), rules("clip_g"), rules("t5xxl", 256)
RULES = {"l": CLIP_L_RULES, "t5xxl": T5_RULES}


def find(name: str) -> Sequence[Tensor] | None:
    return tuple(torch.zeros(VECTORS[name], 4)) if name in VECTORS else None


def runs(chunk: Chunk) -> list[list[object]]:
    """[token or "vector", weight, how often in a row]."""
    found: list[list[object]] = []
    for item in chunk:
        head = [item.token if isinstance(item.token, int) else "vector", item.weight]
        if found and found[-1][:2] == head:
            found[-1][2] = cast(int, found[-1][2]) + 1
        else:
            found.append([*head, 1])
    return found


def numbers(tokens: Tokens) -> list[list[int]]:
    return [[t.token if isinstance(t.token, int) else -1 for t in chunk] for chunk in tokens]


@pytest.mark.parametrize(
    ("prompt", "encoder", "expected"),
    [
        (prompt, encoder, chunks)
        for prompts in PARITY.values()
        for prompt, encoders in prompts.items()
        if prompt != OLDER
        for encoder, chunks in encoders.items()
    ],
)
def test_equals_comfyui(prompt: str, encoder: str, expected: list[list[list[object]]]) -> None:
    assert [runs(c) for c in tokenize(prompt, RULES[encoder], find).chunks] == expected


def test_clip_splits_text_as_transformers_does() -> None:
    own = clip_tokenizer()
    model = json.loads(own.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    theirs = library_class("transformers:CLIPTokenizer")(vocab=model["vocab"], merges=merges)
    chosen = random.Random(0)
    letters = [
        *map(chr, (*range(127), *range(0xA0, 0x250), *range(0x300, 0x370), *range(0x2000, 0x2070))),
        *map(chr, (*range(0x3000, 0x3100), *range(0x4E00, 0x4F00), *range(0x1F600, 0x1F650))),
    ]
    texts = ["".join(chosen.choices(letters, k=chosen.randint(1, 12))) for _ in range(1000)]
    for text in (OLDER, "<|startoftext|> it's 12\u0000\u200b", *texts):
        assert own.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"]


def test_unknown_embeddings_are_named_and_leave_their_comma() -> None:
    found = tokenize("a embedding:nowhere, b", CLIP_L_RULES, find)
    assert found.unknown == ("nowhere",)
    assert numbers(found.chunks)[0][:5] == [49406, 320, 267, 321, 49407]


def test_open_clip_is_padded_with_zero() -> None:
    assert numbers(tokenize("a", OPEN_CLIP_RULES, find).chunks)[0] == [49406, 320, 49407, *[0] * 74]


def test_a_short_part_is_kept_whole_and_a_long_one_is_split() -> None:
    seventy = " ".join(["word"] * 70)
    kept = numbers(tokenize(f"{seventy} (a a a a a a a:1.2)", CLIP_L_RULES, find).chunks)
    assert [sum(t == 320 for t in chunk) for chunk in kept] == [0, 7]
    split = numbers(tokenize(f"{seventy} (a a a a a a a a:1.2)", CLIP_L_RULES, find).chunks)
    assert [sum(t == 320 for t in chunk) for chunk in split] == [5, 3]
    vectors = numbers(tokenize(f"{seventy} embedding:many", CLIP_L_RULES, find).chunks)
    assert [sum(t == -1 for t in chunk) for chunk in vectors] == [5, 15]
    assert all(len(chunk) == 77 for chunk in [*kept, *split, *vectors])


def test_a_full_chunk_does_not_begin_another() -> None:
    assert len(tokenize(" ".join(["word"] * 75), CLIP_L_RULES, find).chunks) == 1
    assert len(tokenize(" ".join(["word"] * 76), CLIP_L_RULES, find).chunks) == 2


def test_t5_padding_options() -> None:
    (chunk,) = numbers(tokenize("a", replace(T5_RULES, min_padding=3, min_length=0), find).chunks)
    assert chunk == [3, 9, 1, 0, 0, 0]
    (chunk,) = numbers(tokenize("a", replace(T5_RULES, min_padding=0, min_length=10), find).chunks)
    assert len(chunk) == 10


def test_the_empty_prompt_of_any_length() -> None:
    assert [t.token for t in OPEN_CLIP_RULES.empty(4)] == [49406, 49407, 0, 0]
    assert [t.token for t in T5_RULES.empty(3)] == [1, 0, 0]
    assert [CLIP_L_RULES.empty(77)] == list(tokenize("", CLIP_L_RULES, find).chunks)
