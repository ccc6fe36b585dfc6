"""`--set` and the seed."""

from __future__ import annotations

from typing import Any

import pytest

from loraloom.errors import InputError
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.edit import apply_assignments, read_assignment, set_seed

PROMPT: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "steps": 20, "cfg": 8.0, "sampler_name": "euler"},
        "_meta": {"title": "Main sampler v1.5"},
    },
    "57:6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}, "_meta": {"title": "Positive"}},
    "57:7": {"class_type": "CLIPTextEncode", "inputs": {"text": "b"}},
    "8": {"class_type": "Strange", "inputs": {"values.a": 1, "name": "n", "flag": True}},
    "9": {"class_type": "ModelSamplingDiscrete", "inputs": {"zsnr": False}},
}


def changed(*texts: str) -> dict[str, Any]:
    graph = apply_assignments(parse_api(PROMPT), core_schemas(), texts)
    return {node.id: dict(node.inputs) for node in graph.nodes.values()}


@pytest.mark.parametrize(
    ("text", "node", "name", "value"),
    [
        ("3.steps=4", "3", "steps", 4),
        ("KSampler.cfg=5", "3", "cfg", 5.0),
        ("ksampler.cfg=5", "3", "cfg", 5.0),
        ("Main sampler v1.5.seed=9", "3", "seed", 9),
        ("57:6.text=a = b. c", "57:6", "text", "a = b. c"),
        ("Positive.text=007", "57:6", "text", "007"),
        ("3.sampler_name=heun", "3", "sampler_name", "heun"),
        ("3.denoise=0.5", "3", "denoise", 0.5),
        ("9.zsnr=yes", "9", "zsnr", True),
        ("8.values.a=2", "8", "values.a", 2),
        ("8.name=5", "8", "name", "5"),
        ("8.flag=false", "8", "flag", False),
    ],
)
def test_values_go_to_their_input_in_its_type(text: str, node: str, name: str, value: object) -> None:
    found = changed(text)[node][name]
    assert found == value
    assert type(found) is type(value)


def test_later_assignments_win_and_the_graph_is_not_changed() -> None:
    graph = parse_api(PROMPT)
    after = apply_assignments(graph, core_schemas(), ["3.steps=4", "3.steps=5"])
    assert after.nodes["3"].inputs["steps"] == 5
    assert graph.nodes["3"].inputs["steps"] == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps=4", "expected NODE.input=value"),
        ("3.steps", "expected NODE.input=value"),
        ("CLIPTextEncode.text=x", r"names 2 nodes; use one of their ids:\n  57:6  node 57:6 “Positive”"),
        ("KSamplr.steps=4", "Nearest: KSampler"),
        ("3.step=4", "Nearest: steps"),
        ("3.steps=many", "expected a whole number from 1 to 10000"),
        ("3.steps=0", "expected a whole number from 1 to 10000"),
        ("3.cfg=nan", "expected a number"),
        ("9.zsnr=maybe", "neither true nor false"),
        ("3.model=x", "a link of type MODEL"),
    ],
)
def test_mistakes_are_named_with_the_candidates(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(text)


def test_parts_of_an_assignment() -> None:
    parts = read_assignment(" a.b . c =d=e")
    assert (parts.node, parts.input, parts.value) == ("a.b", "c", "d=e")


def test_the_seed_is_set_everywhere() -> None:
    prompt: dict[str, Any] = {
        **PROMPT,
        "10": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "11": {"class_type": "PrimitiveInt", "inputs": {"value": 6}},
        "12": {"class_type": "KSampler", "inputs": {"seed": ["11", 0]}},
    }
    graph = set_seed(parse_api(prompt), core_schemas(), 42)
    assert graph.nodes["3"].inputs["seed"] == 42
    assert graph.nodes["10"].inputs["noise_seed"] == 42
    assert graph.nodes["11"].inputs["value"] == 42
    with pytest.raises(InputError, match="no seed to set"):
        set_seed(parse_api({"1": PROMPT["9"]}), core_schemas(), 1)
    with pytest.raises(InputError, match="out of range"):
        set_seed(parse_api(PROMPT), core_schemas(), 1 << 64)


@pytest.mark.parametrize("seed", [1.5, "7"])
def test_a_seed_of_another_type_is_refused_as_on_the_command_line(seed: Any) -> None:
    with pytest.raises(InputError, match="is not a whole number"):
        set_seed(parse_api(PROMPT), core_schemas(), seed)
