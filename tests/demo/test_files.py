from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.demo.files import LORAS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a cat", "pixel_art,a cat"),
        ("pixel_art, a cat", "pixel_art, a cat"),
        ("a cat, pixel_art", "a cat, pixel_art"),
        ("pixel_artist", "pixel_art,pixel_artist"),
        ("", "pixel_art,"),
    ],
)
def test_the_trigger_word_stands_in_a_prompt_once(prompt: str, asked: str) -> None:
    assert LORAS["pixel_art"].asked(prompt) == asked


def test_the_documentation_lists_what_the_model_knows() -> None:
    lines = (ROOT / "recipes/demo_model/concepts.txt").read_text("utf-8").splitlines()
    things = [line.split("|")[1].split(",")[0].strip(" -") for line in lines if "|" in line]
    page = (ROOT / "docs/demo.md").read_text("utf-8")
    listed = page.split("## What it knows\n\n")[1].split("\n\n")[0].removesuffix(".")
    assert listed.replace("\n", " ").split(", ") == things
    assert f"knows {len(things)} things" in page
