"""Damaged workflows: whatever is wrong, it is a WorkflowError or a graph that validates or not."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.errors import WorkflowError
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.ui_format import parse_ui
from loraloom.workflow.validate import validate
from tests.workflow.ui_samples import Ui, host, link, node, subgraph, workflow


def sample() -> Ui:
    """A workflow with one of everything that the editor has."""
    inner = node(
        195, "CLIPTextEncode", values=["a {b|c}"], outputs=["CONDITIONING"],
        inputs=[("clip", "CLIP", 1), ("text", "STRING", 2, "text")],
    )  # fmt: skip
    definition = subgraph(
        "sub", inner,
        inputs=[("clip", "CLIP"), ("text", "STRING")], outputs=[("CONDITIONING", "CONDITIONING")],
        links=[link(1, -10, 0, 195, 0), link(2, -10, 1, 195, 1), link(3, 195, 0, -20, 0)],
    )  # fmt: skip
    ui = workflow(
        node(1, "CheckpointLoaderSimple", values=["a"], outputs=["MODEL", "CLIP", "VAE"]),
        node(
            2, "LoraLoader", values=["l", 1, 1], mode=4,
            inputs=[("model", "MODEL", 1), ("clip", "CLIP", 2)], outputs=["MODEL", "CLIP"],
        ),
        node(3, "Reroute", inputs=[("", "*", 3)], outputs=["*"]),
        host(
            4, "sub", inputs=[("clip", "CLIP", 4)], outputs=["CONDITIONING"], values=["x"],
            properties={"proxyWidgets": [["195", "text"]]},
        ),
        node(5, "PrimitiveNode", values=[64, "fixed"], outputs=["INT"]),
        node(
            6, "EmptyLatentImage", values=[1, 2, 3],
            inputs=[("width", "INT", 5, "width")], outputs=["LATENT"],
        ),
        node(
            7, "KSampler", values=[1, "fixed", 20, 8, "euler", "normal", 1], outputs=["LATENT"],
            inputs=[("model", "MODEL", 6), ("positive", "CONDITIONING", 7), ("latent_image", "LATENT", 8)],
        ),
        node(8, "SaveLatent", values=["%date:yyyy%/%KSampler.seed%"], inputs=[("samples", "LATENT", 9)]),
        node(9, "workflow>Mine", values=[1], inputs=[("samples", "LATENT", 10)]),
        links=[
            link(1, 1, 0, 2, 0), link(2, 1, 1, 2, 1), link(3, 2, 1, 3, 0), link(4, 3, 0, 4, 0),
            link(5, 5, 0, 6, 0), link(6, 2, 0, 7, 0), link(7, 4, 0, 7, 1), link(8, 6, 0, 7, 3),
            link(9, 7, 0, 8, 0), link(10, 7, 0, 9, 0),
        ],
        definitions=[definition],
    )  # fmt: skip
    group = {"nodes": [{"type": "LatentFlip", "widgets_values": ["x"]}], "links": [], "external": []}
    ui["extra"] = {"groupNodes": {"Mine": group}}
    return ui


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list):
        entries = list(enumerate(value))  # pyright: ignore[reportUnknownArgumentType]
    return [p for key, inner in entries for p in ((*path, key), *places(inner, (*path, key)))]


SAMPLE = sample()
JUNK = st.sampled_from(
    [
        None,
        0,
        -1,
        3.5,
        1e308,
        float("nan"),
        True,
        "",
        "x",
        [],
        {},
        [[]],
        {"a": 1},
        -10,
        -20,
        "-10",
        10**30,
        "٣",
    ]
)
CHANGE = st.tuples(st.sampled_from(places(SAMPLE)), st.sampled_from(["put", "drop", "double"]), JUNK)


def change(ui: Ui, path: tuple[Any, ...], how: str, junk: Any) -> None:
    parent: Any = ui
    for key in path[:-1]:
        parent = parent[key]
    if how == "put":
        parent[path[-1]] = copy.deepcopy(junk)
    elif how == "drop":
        del parent[path[-1]]
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(parent[path[-1]]))  # pyright: ignore[reportUnknownMemberType]


def test_the_sample_is_whole() -> None:
    graph = parse_ui(sample())
    assert set(graph.nodes) == {"1", "4:195", "6", "7", "8", "9:0"}
    assert graph.nodes["4:195"].inputs["text"] == "x"
    assert graph.nodes["6"].inputs["width"] == 64


@settings(max_examples=400, deadline=None)
@given(st.lists(CHANGE, min_size=1, max_size=5))
def test_no_damage_escapes_as_a_crash(changes: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    ui = sample()
    for path, how, junk in changes:
        try:
            change(ui, path, how, junk)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # An earlier change took the place away.
    try:
        graph = parse_ui(ui)
    except WorkflowError:
        return
    report = validate(graph, core_schemas(), lambda _: [])
    json.dumps([graph.to_api(), report.to_response()])
