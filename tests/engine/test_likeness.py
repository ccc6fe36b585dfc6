"""Which workflows are variants of one another."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from loraloom.engine.likeness import likeness
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.implemented import implemented_schemas

API: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
    "2": {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["1", 0], "clip": ["1", 1], "lora_name": "a.safetensors",
            "strength_model": 1.0, "strength_clip": 1.0,
        },
    },
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "a rose"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": ""}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "6": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0],
            "seed": 1, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "rose"}},
}  # fmt: skip


def of(api: dict[str, Any], targets: tuple[str, ...] | None = None) -> str | None:
    return likeness(parse_api(api), implemented_schemas(), targets)


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    api = deepcopy(API)
    api[node]["inputs"] |= inputs
    return api


@pytest.mark.parametrize(
    "variant",
    [
        changed("2", lora_name="b.safetensors"),
        changed("2", strength_model=0.3, strength_clip=0.0),
        changed("6", seed=77),
        changed("3", text="a cat"),
        changed("8", filename_prefix="cat"),
    ],
)
def test_loras_seeds_and_texts_may_differ(variant: dict[str, Any]) -> None:
    assert of(variant) == of(API) is not None


def test_a_stack_may_be_of_any_height_and_nodes_of_any_name() -> None:
    none = deepcopy(API)
    del none["2"]
    none["6"]["inputs"]["model"] = ["1", 0]
    none["3"]["inputs"]["clip"] = none["4"]["inputs"]["clip"] = ["1", 1]
    assert of(none) == of(API)
    two = deepcopy(API)
    two["20"] = deepcopy(API["2"])
    two["20"]["inputs"] |= {"model": ["2", 0], "clip": ["2", 1]}
    two["6"]["inputs"]["model"] = ["20", 0]
    assert of(two) == of(API)
    renamed = {f"n{key}": deepcopy(node) for key, node in API.items()}
    for node in renamed.values():
        inputs = node["inputs"]
        node["inputs"] = {k: [f"n{v[0]}", v[1]] if isinstance(v, list) else v for k, v in inputs.items()}
    assert of(renamed) == of(API)


@pytest.mark.parametrize(
    "other",
    [
        changed("1", ckpt_name="other.safetensors"),
        changed("5", width=768),
        changed("6", sampler_name="dpmpp_2m"),
        changed("6", steps=8),
        changed("6", scheduler="karras"),
    ],
)
def test_base_size_sampler_and_steps_may_not(other: dict[str, Any]) -> None:
    assert of(other) != of(API)


def test_what_cannot_be_told() -> None:
    assert of({}) is None and of({"1": API["1"]}) is None
    unknown = deepcopy(API)
    unknown["7"]["class_type"] = "Unknown"
    assert of(unknown) is None
    circle = changed("7", samples=["7", 0])
    assert of(circle) is None
    assert of(changed("7", samples=["70", 0])) is None
    assert of(API, ("1",)) is None and of(API, ("8",)) == of(API)
