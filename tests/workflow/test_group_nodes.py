"""Group nodes: which of their sockets and values belong to which node inside, by the editor's rules."""

from __future__ import annotations

from typing import Any

import pytest

from loraloom.workflow.ui_format import parse_ui
from tests.workflow.ui_samples import Ui, link, node, workflow

LATENT: Ui = {"type": "EmptyLatentImage", "widgets_values": [64, 64, 1], "outputs": [{"name": "LATENT"}]}
SAMPLER_SOCKETS = [
    {"name": name, "type": kind}
    for name, kind in (
        ("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"),
        ("latent_image", "LATENT"),
    )
]  # fmt: skip
SAMPLER: Ui = {
    "type": "KSampler",
    "inputs": SAMPLER_SOCKETS,
    "outputs": [{"name": "LATENT"}],
    "widgets_values": [1, "fixed", 20, 8, "euler", "normal", 1],
}
DRAW = [42, "fixed", 4, 7, "euler", "normal", 1]
DRAWN = {"seed": 42, "steps": 4, "cfg": 7, "sampler_name": "euler", "scheduler": "normal", "denoise": 1}


def turned(*names: str) -> list[Ui]:
    """Sockets of widgets that were turned into inputs (or that a newer editor lists beside the widgets)."""
    return [{"name": name, "type": "*", "widget": {"name": name}} for name in names]


def unfolded(
    nodes: list[Ui],
    values: Any,
    *,
    links: list[Any] | None = None,
    inputs: list[Any] | None = None,
    external: list[Any] | None = None,
    config: Ui | None = None,
    output: int = 0,
) -> dict[str, Any]:
    """The inner nodes of group node 5 in API form, and the nodes around it. inputs: sockets of the group
    node, fed by node 1 (MODEL 0, CLIP 1, VAE 2) and 2 (CONDITIONING)."""
    made = [{**entry, "index": index} for index, entry in enumerate(nodes)]
    group = {"nodes": made, "links": links or [], "external": external or [], "config": config or {}}
    sockets = [(name, kind, 20 + at) for at, (name, kind, *_) in enumerate(inputs or [])]
    wires = [link(20 + at, origin, slot, 5, at) for at, (_, _, origin, slot) in enumerate(inputs or [])]
    ui = workflow(
        node(1, "CheckpointLoaderSimple", values=["a"], outputs=["MODEL", "CLIP", "VAE"]),
        node(2, "CLIPTextEncode", values=["a"], inputs=[("clip", "CLIP", 1)], outputs=["CONDITIONING"]),
        node(3, "PrimitiveInt", values=[99, "fixed"], outputs=["INT"]),
        node(5, "workflow>Draw", values=values, inputs=sockets, outputs=["LATENT", "LATENT"]),
        node(6, "VAEDecode", inputs=[("samples", "LATENT", 10), ("vae", "VAE", 2)]),
        links=[link(1, 1, 1, 2, 0), link(2, 1, 2, 6, 1), link(10, 5, output, 6, 0), *wires],
    )
    ui["extra"] = {"groupNodes": {"Draw": group}}
    graph = parse_ui(ui)
    found: dict[str, Any] = {key: entry["inputs"] for key, entry in graph.to_api().items()}  # type: ignore[index]
    found["notes"] = graph.notes
    return found


FED = [("model", "MODEL", 1, 0), ("positive", "CONDITIONING", 2, 0), ("negative", "CONDITIONING", 2, 0)]
WIRED = [[0, 0, 1, 3, 4, "LATENT"], [None, 0, 1, 0, 1, "MODEL"], [None, 0, 1, 1, 2, "CONDITIONING"]]


def test_a_hidden_widget_keeps_its_place() -> None:
    hidden = {"input": {name: {"visible": False} for name in ("seed", "steps")}}
    found = unfolded(
        [LATENT, SAMPLER], [128, 96, 2, *DRAW], links=WIRED, inputs=FED,
        config={"0": {"input": {"width": {"visible": False}}}, "1": hidden},
    )  # fmt: skip
    assert found["5:0"] == {"width": 128, "height": 96, "batch_size": 2}
    assert found["5:1"] == DRAWN | {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["5:0", 0]
    }  # fmt: skip


def test_a_hidden_socket_has_none() -> None:
    config = {"1": {"input": {"positive": {"visible": False}}}}
    found = unfolded([LATENT, SAMPLER], [1, 2, 3, *DRAW], links=WIRED, inputs=[FED[0], FED[2]], config=config)
    assert found["5:1"]["model"] == ["1", 0]
    assert found["5:1"]["negative"] == ["2", 0]
    assert "positive" not in found["5:1"]


def test_a_newer_editors_sockets_shift_nothing() -> None:
    latent = {**LATENT, "inputs": turned("width", "height", "batch_size")}
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    sampler = {**SAMPLER, "inputs": [*SAMPLER_SOCKETS, *turned(*names)]}
    found = unfolded([latent, sampler], [128, 96, 2, *DRAW], links=WIRED, inputs=FED)
    assert found["5:0"] == {"width": 128, "height": 96, "batch_size": 2}
    assert DRAWN.items() <= found["5:1"].items()
    assert found["5:1"]["model"] == ["1", 0]
    assert found["notes"] == ()


def test_turned_widgets_come_last_with_their_control() -> None:
    """Width of the first node and the seed of the second were turned into inputs and lead nowhere."""
    latent = {**LATENT, "inputs": turned("width")}
    sampler = {**SAMPLER, "inputs": [*SAMPLER_SOCKETS, *turned("seed")]}
    values = [96, 2, 4, 7, "euler", "normal", 1, 128, 42, "fixed"]
    found = unfolded([latent, sampler], values, links=WIRED, inputs=FED)
    assert found["5:0"] == {"width": 128, "height": 96, "batch_size": 2}
    assert DRAWN.items() <= found["5:1"].items()
    assert found["notes"] == ()


def test_a_turned_widget_that_is_fed_inside_has_no_place() -> None:
    sampler = {**SAMPLER, "inputs": [*SAMPLER_SOCKETS, *turned("seed")]}
    primitive = {"type": "PrimitiveInt", "widgets_values": [7, "fixed"], "outputs": [{"name": "INT"}]}
    links = [[0, 0, 2, 3, 4, "LATENT"], [1, 0, 2, 4, 5, "INT"]]
    values = [128, 96, 2, 77, "fixed", 4, 7, "euler", "normal", 1]
    found = unfolded([LATENT, primitive, sampler], values, links=links, inputs=FED)
    assert found["5:1"] == {"value": 77}
    assert found["5:2"]["seed"] == ["5:1", 0]
    assert found["5:2"]["steps"] == 4


@pytest.mark.parametrize(
    ("kind", "name", "given", "saved"),
    [
        ("INT", "steps", [11, "randomize"], [3, "fixed"]),
        ("FLOAT", "cfg", [3.5], [8.0, "fixed"]),
        ("COMBO", "scheduler", ["karras", "fixed", ""], ["normal", "fixed", ""]),
        ("COMBO", "scheduler", ["karras", "fixed"], ["normal", "fixed"]),
    ],
)
def test_a_primitive_inside_has_a_place_of_its_own(
    kind: str, name: str, given: list[Any], saved: list[Any]
) -> None:
    primitive = {"type": "PrimitiveNode", "widgets_values": saved, "outputs": [{"name": kind, "type": kind}]}
    sampler = {**SAMPLER, "inputs": [*SAMPLER_SOCKETS, *turned(name)]}
    links = [[0, 0, 2, 4, 4, kind], [1, 0, 2, 3, 5, "LATENT"]]
    rest = [
        value
        for key, value in zip([*DRAWN, ""], [42, 4, 7, "euler", "normal", 1], strict=False)
        if key != name
    ]
    rest.insert(1, "fixed")
    found = unfolded([primitive, LATENT, sampler], [*given, 128, 96, 2, *rest], links=links, inputs=FED)
    assert found["5:1"] == {"width": 128, "height": 96, "batch_size": 2}
    assert (DRAWN | {name: given[0]}).items() <= found["5:2"].items()
    assert found["notes"] == ()


def test_what_stands_only_in_the_editor_has_no_place() -> None:
    notes = {"type": "Note", "widgets_values": ["do not touch"]}
    loose = {"type": "PrimitiveNode", "widgets_values": [3, "fixed"], "outputs": [{"name": "INT"}]}
    links = [[2, 0, 3, 3, 4, "LATENT"]]
    found = unfolded([notes, loose, LATENT, SAMPLER], [128, 96, 2, *DRAW], links=links, inputs=FED)
    assert found["5:2"] == {"width": 128, "height": 96, "batch_size": 2}
    assert DRAWN.items() <= found["5:3"].items()


def test_an_unknown_class_has_as_many_places_as_it_saved_values() -> None:
    strange = {"type": "MyScheduler", "widgets_values": ["ays", 7], "outputs": [{"name": "X", "type": "X"}]}
    found = unfolded(
        [strange, LATENT, SAMPLER], ["x", 8, 128, 96, 2, *DRAW],
        links=[[1, 0, 2, 3, 4, "LATENT"]], inputs=FED, output=1,
    )  # fmt: skip
    assert found["5:1"] == {"width": 128, "height": 96, "batch_size": 2}
    assert DRAWN.items() <= found["5:2"].items()
    assert found["6"]["samples"] == ["5:2", 0]


def test_an_unknown_class_gets_the_group_nodes_values() -> None:
    strange = {"type": "MyScheduler", "widgets_values": ["ays", 7], "inputs": turned("kind", "steps")}
    found = unfolded([strange, LATENT], ["x", 8, 128, 96, 2])
    assert found["5:0"] == {"kind": "x", "steps": 8}
    assert found["5:1"] == {"width": 128, "height": 96, "batch_size": 2}


def test_widgets_that_a_class_got_later_have_no_place() -> None:
    """VAEDecodeTiled had one widget once."""
    decode = {"type": "VAEDecodeTiled", "widgets_values": [512], "outputs": [{"name": "IMAGE"}]}
    found = unfolded([decode, LATENT], [256, 128, 96, 2])
    assert found["5:0"]["tile_size"] == 256
    assert found["5:1"] == {"width": 128, "height": 96, "batch_size": 2}


@pytest.mark.parametrize("upload", [[], ["image"]])
def test_an_upload_button_may_have_a_place(upload: list[str]) -> None:
    load = {"type": "LoadImage", "widgets_values": ["a.png", "image"], "outputs": [{"name": "IMAGE"}]}
    found = unfolded([load, LATENT], ["b.png", *upload, 128, 96, 2])
    assert found["5:0"] == {"image": "b.png"}
    assert found["5:1"] == {"width": 128, "height": 96, "batch_size": 2}


def test_reroutes_inside_pass_their_link_on() -> None:
    reroute = {"type": "Reroute", "inputs": [{"name": "", "type": "*"}], "outputs": [{"name": ""}]}
    links = [[0, 0, 1, 0, 4, "LATENT"], [1, 0, 2, 3, 5, "LATENT"], [None, 0, 3, 0, 6, "MODEL"],
             [3, 0, 2, 0, 7, "MODEL"]]  # fmt: skip
    fed = [("positive", "CONDITIONING", 2, 0), ("negative", "CONDITIONING", 2, 0), ("MODEL", "MODEL", 1, 0)]
    found = unfolded([LATENT, reroute, SAMPLER, reroute], [128, 96, 2, *DRAW], links=links, inputs=fed)
    assert found["5:2"]["latent_image"] == ["5:0", 0]
    assert found["5:2"]["model"] == ["1", 0]


def test_an_author_may_show_an_output_that_is_used_inside() -> None:
    config = {"0": {"output": {"0": {"visible": True}}}, "1": {"output": {"0": {"visible": False}}}}
    found = unfolded([LATENT, SAMPLER], [128, 96, 2, *DRAW], links=WIRED, inputs=FED, config=config)
    assert found["6"]["samples"] == ["5:0", 0]


def test_a_link_to_a_widget_of_the_group_node_arrives() -> None:
    found = unfolded(
        [LATENT, SAMPLER], [128, 96, 2, *DRAW], links=WIRED, inputs=[*FED, ("height", "INT", 3, 0)]
    )
    assert found["5:0"] == {"width": 128, "height": ["3", 0], "batch_size": 2}


def test_sockets_of_one_name_are_told_apart() -> None:
    """Two texts and two clips: the group node puts the class in front of the second."""
    encode = {"type": "CLIPTextEncode", "inputs": [{"name": "clip", "type": "CLIP"}], "widgets_values": ["x"]}
    fed = [("CLIPTextEncode clip", "CLIP", 1, 1)]
    found = unfolded([encode, encode], ["one", "two"], inputs=fed)
    assert found["5:0"] == {"text": "one"}
    assert found["5:1"] == {"text": "two", "clip": ["1", 1]}


def test_two_group_nodes_of_one_kind_keep_their_own_values() -> None:
    ui = workflow(
        node(1, "workflow>Size", values=[128, 96, 2], outputs=["LATENT"]),
        node(2, "workflow/Size", values=[256, 64, 1], outputs=["LATENT"]),
        node(3, "LatentAdd", inputs=[("samples1", "LATENT", 1), ("samples2", "LATENT", 2)]),
        links=[link(1, 1, 0, 3, 0), link(2, 2, 0, 3, 1)],
    )
    ui["extra"] = {"groupNodes": {"Size": {"nodes": [LATENT], "links": [], "external": []}}}
    found = parse_ui(ui).to_api()
    assert found["1:0"]["inputs"]["width"] == 128  # type: ignore[index]
    assert found["2:0"]["inputs"]["width"] == 256  # type: ignore[index]


def test_values_that_do_not_add_up_are_said() -> None:
    found = unfolded([LATENT, SAMPLER], [128, 96], links=WIRED, inputs=FED)
    assert found["5:0"] == {"width": 128, "height": 96, "batch_size": 1}
    assert "“Draw” (node 5): 2 values for 10 widgets" in found["notes"][0]


def test_texts_are_queued_as_the_nodes_own() -> None:
    encode = {"type": "CLIPTextEncode", "inputs": [{"name": "clip", "type": "CLIP"}], "widgets_values": ["x"]}
    assert unfolded([encode], ["a {red|red} rose"])["5:0"]["text"] == "a red rose"
