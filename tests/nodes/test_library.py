"""The node library as editors see it: schemas equal ComfyUI's, the index is up to date."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from loraloom.engine.node import NodeType, collect
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.implemented import implemented_schemas, index
from loraloom.workflow.object_info import object_info

NODES = collect("loraloom.nodes")
TUTORIAL = [
    "CheckpointLoaderSimple",
    "CLIPTextEncode",
    "EmptyLatentImage",
    "EmptySD3LatentImage",
    "FluxGuidance",
    "KSampler",
    "KSamplerAdvanced",
    "LoraLoader",
    "LoraLoaderModelOnly",
    "SaveImage",
    "PreviewImage",
    "UNETLoader",
    "VAEDecode",
    "VAEEncode",
    "VAELoader",
    "DualCLIPLoader",
    "LoadImage",
    "SaveLatent",
    "LoadLatent",
    "EmptyImage",
    "CLIPSetLastLayer",
]


def no_files(_folder: str) -> list[str]:
    return []


@pytest.mark.parametrize("name", [n for n in NODES if n in core_schemas() and not core_schemas()[n].newer])
def test_a_schema_equals_comfyuis(name: str) -> None:
    expected = object_info(core_schemas()[name], no_files)
    found = object_info(NODES[name].schema, no_files)
    for entry in (expected, found):
        entry.pop("description", None)
    assert found == expected


@pytest.mark.parametrize("name", TUTORIAL)
def test_the_tutorials_nodes_are_here(name: str) -> None:
    assert name in NODES


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_every_node_says_what_it_does(node: NodeType) -> None:
    assert node.schema.description, "the first line of the docstring is the description"
    assert node.schema.category


def test_the_index_is_up_to_date() -> None:
    text = resources.files("loraloom.workflow").joinpath("data/implemented.json").read_text("utf-8")
    assert text == index({n: t.schema for n, t in NODES.items()}), "run scripts/index_nodes.py"
    assert set(implemented_schemas()) == set(NODES)


def test_the_docs_table_is_up_to_date() -> None:
    path = Path(__file__).parents[2] / "docs/nodes.md"
    assert path.read_text("utf-8").count("\n| `") == len(NODES), "run scripts/index_nodes.py"
