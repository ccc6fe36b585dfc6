"""Hints on LoRA wiring: said where something is rarely meant, silent where all is well."""

from __future__ import annotations

from typing import Any

import pytest

from loraloom.workflow.graph import Graph, GraphNode, Link
from loraloom.workflow.lora_hints import LoraFacts, lora_hints

FACTS = {
    "both": LoraFacts(True, True, ("pixel_art",)),
    "model": LoraFacts(False, True),
    "style": LoraFacts(True, True),
}


def _graph(**nodes: tuple[str, dict[str, Any]]) -> Graph:
    return Graph({name: GraphNode(name, kind, inputs) for name, (kind, inputs) in nodes.items()})


def _tutorial(
    file: str = "both", text: str = "pixel art rose", **changes: tuple[str, dict[str, Any]]
) -> Graph:
    """The tutorial's workflow, wired as it should be."""
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "ckpt": ("CheckpointLoaderSimple", {"ckpt_name": "sd"}),
        "lora": (
            "LoraLoader",
            {"model": Link("ckpt", 0), "clip": Link("ckpt", 1), "lora_name": file, "strength_model": 0.8,
             "strength_clip": 1.0},
        ),
        "pos": ("CLIPTextEncode", {"clip": Link("lora", 1), "text": text}),
        "neg": ("CLIPTextEncode", {"clip": Link("lora", 1), "text": "blurry"}),
        "sampler": (
            "KSampler",
            {"model": Link("lora", 0), "positive": Link("pos", 0), "negative": Link("neg", 0)},
        ),
    }  # fmt: skip
    return _graph(**{**nodes, **changes})


def _messages(graph: Graph) -> list[str]:
    return [hint.message for hint in lora_hints(graph, FACTS.get)]


def test_right_wiring_says_nothing() -> None:
    assert _messages(_tutorial()) == []
    assert _messages(_tutorial(text="a (Pixel_Art:1.2) rose")) == []


def test_clip_past_the_lora() -> None:
    graph = _tutorial(
        pos=("CLIPTextEncode", {"clip": Link("ckpt", 1), "text": "pixel_art"}),
        neg=("CLIPTextEncode", {"clip": Link("ckpt", 1), "text": ""}),
    )
    (message,) = _messages(graph)
    assert "CLIP output is not connected" in message
    assert "both MODEL and CLIP" in message
    assert "node pos" in message


def test_loader_for_both_with_a_model_only_lora() -> None:
    (message,) = _messages(_tutorial("model"))
    assert "LoraLoaderModelOnly" in message


def test_model_only_loader_leaves_text_weights_out() -> None:
    graph = _tutorial(
        lora=("LoraLoaderModelOnly", {"model": Link("ckpt", 0), "lora_name": "style", "strength_model": 1.0}),
        pos=("CLIPTextEncode", {"clip": Link("ckpt", 1), "text": ""}),
        neg=("CLIPTextEncode", {"clip": Link("ckpt", 1), "text": ""}),
    )
    (message,) = _messages(graph)
    assert "text-encoder weights" in message


def test_trigger_word_missing() -> None:
    (message,) = _messages(_tutorial(text="a rose in a vase"))
    assert "'pixel_art'" in message


def test_trigger_word_in_the_negative_prompt_does_not_count() -> None:
    graph = _tutorial(text="a rose", neg=("CLIPTextEncode", {"clip": Link("lora", 1), "text": "pixel_art"}))
    assert "pixel_art" in _messages(graph)[0]


@pytest.mark.parametrize(("strength", "expected"), [(-0.8, "cancel"), (0.5, "second time")])
def test_twice_on_one_path(strength: float, expected: str) -> None:
    graph = _tutorial(
        again=(
            "LoraLoader",
            {"model": Link("lora", 0), "clip": Link("lora", 1), "lora_name": "both",
             "strength_model": strength, "strength_clip": 1.0},
        ),
        sampler=("KSampler", {"model": Link("again", 0), "positive": Link("pos", 0)}),
        pos=("CLIPTextEncode", {"clip": Link("again", 1), "text": "pixel art"}),
    )  # fmt: skip
    (message,) = _messages(graph)
    assert expected in message


def test_the_same_lora_on_two_paths_is_fine() -> None:
    graph = _tutorial(
        other=(
            "LoraLoader",
            {"model": Link("ckpt", 0), "clip": Link("ckpt", 1), "lora_name": "both", "strength_model": 0.4,
             "strength_clip": 0.4},
        ),
        second=("KSampler", {"model": Link("other", 0), "positive": Link("p2", 0)}),
        p2=("CLIPTextEncode", {"clip": Link("other", 1), "text": "pixel art"}),
    )  # fmt: skip
    assert _messages(graph) == []


def test_unused_and_idle() -> None:
    unused = _tutorial(
        sampler=(
            "KSampler",
            {"model": Link("ckpt", 0), "positive": Link("pos", 0)},
        ),
        pos=("CLIPTextEncode", {"clip": Link("ckpt", 1), "text": "pixel art"}),
        neg=("CLIPTextEncode", {"clip": Link("ckpt", 1), "text": ""}),
    )
    assert _messages(unused) == ["nothing uses its output: it has no effect"]
    node = _tutorial().nodes["lora"]
    idle = _tutorial(lora=("LoraLoader", {**node.inputs, "strength_model": 0, "strength_clip": 0.0}))
    assert "its strengths are 0: it changes nothing" in _messages(idle)


def test_prompt_tags_are_no_loras() -> None:
    (message,) = _messages(_tutorial(text="pixel_art <lora:detail:0.8>, (red:1.2)"))
    assert "<lora:detail:0.8>" in message


def test_unknown_files_and_cycles_are_no_trouble() -> None:
    graph = _tutorial("absent")
    assert _messages(graph) == []
    loop = _graph(
        a=("LoraLoaderModelOnly", {"model": Link("b", 0), "lora_name": "x", "strength_model": 1.0}),
        b=("LoraLoaderModelOnly", {"model": Link("a", 0), "lora_name": "x", "strength_model": 1.0}),
        c=("KSampler", {"model": Link("gone", 0), "positive": "text"}),
    )
    assert all("second time" in message for message in _messages(loop))
