"""What `--lora` means: a file's name may hold colons, and strengths are read from its end."""

from __future__ import annotations

import pytest

from loraloom.errors import InputError
from loraloom.workflow.insert_lora import LoraChoice, read_lora_choice

FILES = {
    "x.safetensors",
    "style:v2.safetensors",
    "odd:0.5",
    "sub/take:2.safetensors",
    "C:\\loras\\x.safetensors",
}


def listed(name: str) -> str | None:
    return name if name in FILES else None


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("x.safetensors", LoraChoice("x.safetensors")),
        ("x.safetensors:0.8", LoraChoice("x.safetensors", 0.8)),
        ("x.safetensors:0.8:-1", LoraChoice("x.safetensors", 0.8, -1)),
        ("style:v2.safetensors", LoraChoice("style:v2.safetensors")),
        ("style:v2.safetensors:0.5", LoraChoice("style:v2.safetensors", 0.5)),
        ("style:v2.safetensors:0.5:0", LoraChoice("style:v2.safetensors", 0.5, 0)),
        ("odd:0.5", LoraChoice("odd:0.5")),
        ("odd:0.5:2", LoraChoice("odd:0.5", 2)),
        ("C:\\loras\\x.safetensors:0.5", LoraChoice("C:\\loras\\x.safetensors", 0.5)),
        ("x:0.5", LoraChoice("x.safetensors", 0.5)),
        ("style:v2:0.5", LoraChoice("style:v2.safetensors", 0.5)),
        ("sub/take:2", LoraChoice("sub/take:2.safetensors")),
        ("sub/take:2:0.5", LoraChoice("sub/take:2.safetensors", 0.5)),
        ("none.safetensors", LoraChoice("none.safetensors")),
        ("none:v1.safetensors:0.5:1", LoraChoice("none:v1.safetensors", 0.5, 1)),
        ("none:v1.safetensors", LoraChoice("none:v1.safetensors")),
    ],
)
def test_names_and_strengths(text: str, choice: LoraChoice) -> None:
    assert read_lora_choice(text, listed) == choice


@pytest.mark.parametrize(
    "text", ["x.safetensors:strong", "x.safetensors:", "x.safetensors:nan", "x.safetensors:1:500"]
)
def test_what_is_no_strength_is_said(text: str) -> None:
    with pytest.raises(InputError, match="is not a strength"):
        read_lora_choice(text, listed)


@pytest.mark.parametrize("text", ["", ":", ":1", ":1:2"])
def test_strengths_alone_are_no_lora(text: str) -> None:
    with pytest.raises(InputError, match="is not a LoRA|is not a strength"):
        read_lora_choice(text, listed)


def test_a_file_may_be_listed_under_another_name() -> None:
    found = read_lora_choice(
        "/tmp/x.safetensors:2", lambda name: "x.safetensors" if name == "/tmp/x.safetensors" else None
    )
    assert found == LoraChoice("x.safetensors", 2)
