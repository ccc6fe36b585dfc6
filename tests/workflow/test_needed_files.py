"""Which files a graph names."""

from __future__ import annotations

from typing import Any

from loraloom.workflow.implemented import implemented_schemas
from loraloom.workflow.needed_files import NeededFile, needed_files

GRAPH: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a/base.safetensors"}},
    "2": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "hat.safetensors", "model": ["1", 0], "strength_model": 1.0},
    },
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat, (embedding:bad:1.2), embedding:hands"}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
    "5": {"class_type": "LoraLoader", "inputs": {"lora_name": "hat.safetensors", "model": ["2", 0]}},
    "6": {"class_type": "Unknown", "inputs": {"lora_name": "x.safetensors"}},
    "7": "no node",
    "8": {"class_type": "KSampler", "inputs": {"sampler_name": "euler"}},
}


def test_models_loras_embeddings_and_pictures_are_found() -> None:
    found = needed_files(GRAPH, implemented_schemas())
    assert [f.name for f in found] == [
        "a/base.safetensors",
        "hat.safetensors",
        "bad",
        "hands",
        "cat.png",
    ]
    assert found[0] == NeededFile(("checkpoints",), "a/base.safetensors")
    assert [f.name for f in found if f.is_model] == ["a/base.safetensors"]
    assert [f.name for f in found if f.is_added] == ["hat.safetensors", "bad", "hands"]
