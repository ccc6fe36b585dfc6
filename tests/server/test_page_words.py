"""What went wrong, in words that say what to do."""

from __future__ import annotations

import pytest

from loraloom.server.page_routes.words import TRAINING, trouble_of


@pytest.mark.parametrize(
    ("kind", "message", "advice"),
    [
        ("loraloom.errors.OutOfMemory", "CUDA error: out of memory", "smaller size"),
        ("quarantined", "the worker ended 2 times", "retry"),
        ("loraloom.errors.ModelFileError", "a.safetensors: cut short: 5 bytes", "Download"),
        ("loraloom.errors.InputError", "x.safetensors: nothing of this LoRA fits", "Switch this LoRA off"),
        ("ValueError", "something else", "details"),
    ],
)
def test_trouble_says_what_to_do(kind: str, message: str, advice: str) -> None:
    found = trouble_of({"type": kind, "message": message, "title": "KSampler", "class_type": "KSampler"})
    assert found is not None
    assert advice in found.advice
    assert found.where == "KSampler"
    assert trouble_of(None) is None


def test_what_is_advised_is_said_once() -> None:
    message = "a.safetensors: cut short: 5 of 9 bytes are there; download it again"
    found = trouble_of({"type": "x", "message": message, "title": "", "class_type": "LoraLoader"})
    assert found is not None
    assert (found.what, found.where) == ("a.safetensors: cut short: 5 of 9 bytes are there.", "LoraLoader")
    assert "Download that file again" in found.advice


def test_a_training_has_no_details_to_look_at() -> None:
    found = trouble_of({"type": TRAINING, "message": "a.png is not a picture"})
    assert found is not None and "go on" in found.advice


def test_trouble_names_its_node_once() -> None:
    message = "node 4 “Start picture” (LoadImage): 'x.png' is not in the input folder"
    found = trouble_of({"type": "x", "message": message, "title": "Start", "class_type": "LoadImage"})
    assert found is not None
    assert (found.what, found.where) == ("'x.png' is not in the input folder.", "Start (LoadImage)")
