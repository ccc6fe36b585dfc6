"""UI → graph, against what ComfyUI's own editor makes of the same files and case by case."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from loraloom.errors import WorkflowError
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.ui_format import Queueing, model_references, parse_ui
from tests.workflow.ui_samples import Ui, host, link, node, subgraph, workflow

EXPECTED = Path(__file__).parents[1] / "data" / "parity" / "graph_to_prompt"


def templates_folder() -> Path | None:
    """The workflows of the templates package, without importing it."""
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "templates"


TEMPLATES = templates_folder()
needs_templates = pytest.mark.skipif(
    TEMPLATES is None, reason="needs the package comfyui-workflow-templates-json (extra dev)"
)


def api(ui: Ui, **options: Any) -> dict[str, Any]:
    """The API form of a sample, without titles."""
    graph: dict[str, Any] = parse_ui(ui, **options).to_api()
    return {key: {k: entry[k] for k in entry if k != "_meta"} for key, entry in graph.items()}


@needs_templates
@pytest.mark.parametrize("name", sorted(p.stem for p in EXPECTED.glob("*.json")))
def test_equals_the_editors_own_conversion(name: str) -> None:
    assert TEMPLATES is not None
    ui = json.loads((TEMPLATES / f"{name}.json").read_text("utf-8"))
    assert api(ui) == json.loads((EXPECTED / f"{name}.json").read_text("utf-8"))


@needs_templates
def test_every_template_converts_and_every_link_leads_somewhere() -> None:
    assert TEMPLATES is not None
    converted = 0
    for path in sorted(TEMPLATES.glob("*.json")):
        ui = json.loads(path.read_text("utf-8"))
        if not isinstance(ui, dict) or "nodes" not in ui:
            continue
        graph = parse_ui(ui, origin=path.name)
        converted += 1
        for entry in graph.nodes.values():
            for target in entry.links().values():
                assert target.node in graph.nodes, (path.name, entry.label())
    assert converted > 600


def test_widget_values_get_names_and_the_seed_control_is_dropped() -> None:
    ui = workflow(node(3, "KSampler", values=[7, "randomize", 20, 8, "euler", "normal", 1]))
    assert api(ui)["3"]["inputs"] == {
        "seed": 7, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
    }  # fmt: skip


@pytest.mark.parametrize("control", ["fixed", True, None])
def test_seed_control_of_old_files(control: object) -> None:
    values = [7, *([] if control is None else [control]), 20, 8, "euler", "normal", 1]
    inputs = api(workflow(node(3, "KSampler", values=values)))["3"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["denoise"]) == (7, 20, 1)


def test_missing_values_get_their_default_and_too_many_are_ignored() -> None:
    ui = workflow(
        node(1, "CLIPLoader", values=["a.safetensors", "sdxl"]),
        node(2, "CLIPTextEncode", values=["x", 1, 2, 3]),
    )
    found = api(ui)
    assert found["1"]["inputs"]["device"] == "default"
    assert found["2"]["inputs"] == {"text": "x"}


def test_upload_button_takes_a_place_behind_the_required_inputs() -> None:
    ui = workflow(node(1, "LoadImageMask", values=["a.png", "red", "image"]))
    assert api(ui)["1"]["inputs"] == {"image": "a.png", "channel": "red"}


def test_values_may_be_an_object() -> None:
    ui = workflow(node(1, "EmptyLatentImage", values={"width": 64, "height": 32, "batch_size": 2}))
    assert api(ui)["1"]["inputs"] == {"width": 64, "height": 32, "batch_size": 2}


def test_a_widget_turned_into_an_input_takes_the_link() -> None:
    ui = workflow(
        node(1, "PrimitiveInt", values=[9, "fixed"], outputs=["INT"]),
        node(2, "EmptyLatentImage", values=[64, 32, 1], inputs=[("width", "INT", 5, "width")]),
        links=[link(5, 1, 0, 2, 0, "INT")],
    )
    assert api(ui)["2"]["inputs"] == {"width": ["1", 0], "height": 32, "batch_size": 1}


def test_primitive_gives_its_value_even_through_a_reroute() -> None:
    ui = workflow(
        node(1, "PrimitiveNode", values=[48, "fixed"], outputs=["INT"]),
        node(3, "Reroute", inputs=[("", "*", 6)], outputs=["*"]),
        node(
            2,
            "EmptyLatentImage",
            values=[64, 32, 1],
            inputs=[("width", "INT", 7, "width"), ("height", "INT", 5, "height")],
        ),
        links=[link(5, 1, 0, 2, 1), link(6, 1, 0, 3, 0), link(7, 3, 0, 2, 0)],
    )
    found = api(ui)
    assert list(found) == ["2"]
    assert found["2"]["inputs"] == {"width": 48, "height": 48, "batch_size": 1}


def test_notes_and_reroutes_disappear() -> None:
    ui = workflow(
        node(1, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
        node(2, "Reroute", inputs=[("", "*", 1)], outputs=["*"]),
        node(3, "Reroute", inputs=[("", "*", 2)], outputs=["*"]),
        node(4, "LatentFlip", values=["x"], inputs=[("samples", "LATENT", 3)]),
        node(5, "Note", values=["hello"]),
        node(6, "MarkdownNote", values=["hello"]),
        links=[link(1, 1, 0, 2, 0), link(2, 2, 0, 3, 0), link(3, 3, 0, 4, 0)],
    )
    found = api(ui)
    assert list(found) == ["1", "4"]
    assert found["4"]["inputs"]["samples"] == ["1", 0]


def lora_chain(mode: int) -> Ui:
    return workflow(
        node(1, "CheckpointLoaderSimple", values=["a"], outputs=["MODEL", "CLIP", "VAE"]),
        node(
            2, "LoraLoader", values=["l", 1, 1], mode=mode,
            inputs=[("model", "MODEL", 1), ("clip", "CLIP", 2)], outputs=["MODEL", "CLIP"],
        ),
        node(3, "CLIPTextEncode", values=["x"], inputs=[("clip", "CLIP", 3)], outputs=["CONDITIONING"]),
        node(4, "ModelSamplingDiscrete", values=["eps", False], inputs=[("model", "MODEL", 4)]),
        links=[link(1, 1, 0, 2, 0), link(2, 1, 1, 2, 1), link(3, 2, 1, 3, 0), link(4, 2, 0, 4, 0)],
    )  # fmt: skip


def test_bypass_passes_through_by_type() -> None:
    found = api(lora_chain(4))
    assert "2" not in found
    assert found["3"]["inputs"]["clip"] == ["1", 1]
    assert found["4"]["inputs"]["model"] == ["1", 0]


def test_bypass_of_a_node_without_such_an_input_gives_nothing() -> None:
    ui = workflow(
        node(
            1,
            "VAEDecode",
            inputs=[("samples", "LATENT", None), ("vae", "VAE", None)],
            outputs=["IMAGE"],
            mode=4,
        ),
        node(2, "PreviewImage", inputs=[("images", "IMAGE", 1)]),
        links=[link(1, 1, 0, 2, 0)],
    )
    assert api(ui) == {"2": {"inputs": {}, "class_type": "PreviewImage"}}


def test_mute_removes_the_node_and_the_links_to_it() -> None:
    found = api(lora_chain(2))
    assert "2" not in found
    assert "clip" not in found["3"]["inputs"]
    assert "model" not in found["4"]["inputs"]


def test_set_and_get_nodes_are_looked_through() -> None:
    ui = workflow(
        node(1, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
        node(2, "SetNode", values=["size"], inputs=[("LATENT", "LATENT", 1)], outputs=["*"]),
        node(3, "GetNode", values=["size"], outputs=["LATENT"]),
        node(4, "LatentFlip", values=["x"], inputs=[("samples", "LATENT", 2)]),
        links=[link(1, 1, 0, 2, 0), link(2, 3, 0, 4, 0)],
    )
    assert api(ui)["4"]["inputs"]["samples"] == ["1", 0]


def text_subgraph(values: list[Any], **properties: Any) -> Ui:
    inner = node(
        195, "CLIPTextEncode", values=["inner"], inputs=[("clip", "CLIP", 1), ("text", "STRING", 2, "text")]
    )
    size = node(196, "EmptyLatentImage", values=[64, 64, 1], inputs=[("width", "INT", 3, "width")])
    definition = subgraph(
        "sub", inner, size, inputs=[("clip", "CLIP"), ("text", "STRING"), ("width", "INT")],
        links=[link(1, -10, 0, 195, 0), link(2, -10, 1, 195, 1), link(3, -10, 2, 196, 0)],
    )  # fmt: skip
    outer = host(200, "sub", inputs=[("clip", "CLIP", 9)], values=values, properties=properties)
    clip = node(1, "CLIPLoader", values=["c", "sdxl", "default"], outputs=["CLIP"])
    return workflow(clip, outer, links=[link(9, 1, 0, 200, 0)], definitions=[definition])


def test_subgraph_ids_are_joined_and_outer_links_reach_in() -> None:
    found = api(text_subgraph([]))
    assert found["200:195"]["inputs"] == {"text": "inner", "clip": ["1", 0]}


def test_promoted_values_in_the_order_of_the_definition() -> None:
    found = api(text_subgraph(["outer", 128]))
    assert found["200:195"]["inputs"]["text"] == "outer"
    assert found["200:196"]["inputs"] == {"width": 128, "height": 64, "batch_size": 1}


def test_promoted_values_in_the_order_of_the_proxies() -> None:
    proxies = [["196", "height"], ["196", "width"], ["195", "text"]]
    found = api(text_subgraph([8, 128, "outer"], proxyWidgets=proxies))
    assert found["200:195"]["inputs"]["text"] == "outer"
    assert found["200:196"]["inputs"] == {"width": 128, "height": 8, "batch_size": 1}


def test_proxies_without_values_leave_the_inner_ones() -> None:
    found = api(text_subgraph([], proxyWidgets=[["196", "height"], ["195", "text"]]))
    assert found["200:195"]["inputs"]["text"] == "inner"
    assert found["200:196"]["inputs"]["height"] == 64


def test_host_values_by_the_name_of_the_input() -> None:
    found = api(text_subgraph(["outer", 96], proxyWidgets=[["-1", "text"], ["-1", "width"]]))
    assert found["200:195"]["inputs"]["text"] == "outer"
    assert found["200:196"]["inputs"]["width"] == 96


def test_two_instances_of_one_subgraph_keep_their_own_values() -> None:
    ui = text_subgraph(["first", 128])
    second = host(201, "sub", inputs=[("clip", "CLIP", None)], values=["second", 256])
    ui["nodes"].append(second)
    found = api(ui)
    assert [found[f"{key}:195"]["inputs"]["text"] for key in (200, 201)] == ["first", "second"]


def test_nested_subgraphs_and_their_outputs() -> None:
    empty = node(
        5, "EmptyLatentImage", values=[64, 64, 1], inputs=[("width", "INT", 1, "width")], outputs=["LATENT"]
    )
    inner = subgraph(
        "inner", empty, inputs=[("width", "INT")], outputs=[("LATENT", "LATENT")],
        links=[link(1, -10, 0, 5, 0), link(2, 5, 0, -20, 0)],
    )  # fmt: skip
    nested = host(6, "inner", inputs=[("width", "INT", 1, "width")], outputs=["LATENT"], values=[96])
    outer = subgraph(
        "outer", nested, inputs=[("width", "INT")], outputs=[("LATENT", "LATENT")],
        links=[link(1, -10, 0, 6, 0), link(2, 6, 0, -20, 0)],
    )  # fmt: skip
    ui = workflow(
        host(7, "outer", outputs=["LATENT"], values=[256]),
        node(8, "LatentFlip", values=["x"], inputs=[("samples", "LATENT", 1)]),
        links=[link(1, 7, 0, 8, 0)], definitions=[outer, inner],
    )  # fmt: skip
    found = api(ui)
    assert found["8"]["inputs"]["samples"] == ["7:6:5", 0]
    assert found["7:6:5"]["inputs"]["width"] == 256
    ui["nodes"][0]["widgets_values"] = []
    assert api(ui)["7:6:5"]["inputs"]["width"] == 96


def test_a_bypassed_subgraph_passes_through() -> None:
    flip = node(5, "LatentFlip", values=["x"], inputs=[("samples", "LATENT", 1)], outputs=["LATENT"])
    definition = subgraph(
        "sub", flip, inputs=[("samples", "LATENT")], outputs=[("LATENT", "LATENT")],
        links=[link(1, -10, 0, 5, 0), link(2, 5, 0, -20, 0)],
    )  # fmt: skip
    ui = workflow(
        node(1, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
        host(2, "sub", inputs=[("samples", "LATENT", 1)], outputs=["LATENT"], mode=4),
        node(3, "LatentFlip", values=["x"], inputs=[("samples", "LATENT", 2)]),
        links=[link(1, 1, 0, 2, 0), link(2, 2, 0, 3, 0)], definitions=[definition],
    )  # fmt: skip
    found = api(ui)
    assert list(found) == ["1", "3"]
    assert found["3"]["inputs"]["samples"] == ["1", 0]
    ui["nodes"][1]["mode"] = 0
    assert api(ui)["3"]["inputs"]["samples"] == ["2:5", 0]


def test_ids_that_two_levels_share_are_renumbered() -> None:
    inner = node(1, "CLIPTextEncode", values=["inner"], inputs=[("text", "STRING", 2, "text")])
    definition = subgraph("sub", inner, inputs=[("text", "STRING")], links=[link(2, -10, 0, 1, 0)])
    proxies = {"proxyWidgets": [["1", "text"]]}
    ui = workflow(
        host(1, "sub", values=["outer"], properties=proxies), definitions=[definition], last_node_id=7
    )
    assert api(ui)["1:8"]["inputs"]["text"] == "outer"


def test_a_subgraph_that_contains_itself_is_refused() -> None:
    definition = subgraph("sub", host(5, "sub"))
    with pytest.raises(WorkflowError, match="contains itself"):
        parse_ui(workflow(host(1, "sub"), definitions=[definition]))


def test_subgraphs_that_multiply_are_refused() -> None:
    definitions = [subgraph(f"s{i}", *(host(10 * i + k, f"s{i + 1}") for k in range(9))) for i in range(20)]
    with pytest.raises(WorkflowError, match="expand to more than"):
        parse_ui(workflow(host(1, "s0"), definitions=definitions))


def test_a_circle_of_reroutes_is_refused() -> None:
    ui = workflow(
        node(1, "Reroute", inputs=[("", "*", 2)], outputs=["*"]),
        node(2, "Reroute", inputs=[("", "*", 1)], outputs=["*"]),
        node(3, "PreviewImage", inputs=[("images", "IMAGE", 3)]),
        links=[link(1, 1, 0, 2, 0), link(2, 2, 0, 1, 0), link(3, 2, 0, 3, 0)],
    )
    with pytest.raises(WorkflowError, match="circle"):
        parse_ui(ui)


def test_unknown_classes_convert_as_far_as_names_are_known() -> None:
    ui = workflow(
        node(1, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
        node(2, "Strange", values=["a", 3, "fixed"], inputs=[
            ("samples", "LATENT", 1), ("name", "STRING", None, "name"), ("seed", "INT", None, "seed"),
        ]),
        links=[link(1, 1, 0, 2, 0)],
    )  # fmt: skip
    assert api(ui)["2"]["inputs"] == {"samples": ["1", 0], "name": "a", "seed": 3}
    named = node(3, "Stranger", values=[1, 2])
    named["widgets_values_named"] = {"x": 1, "y": 2, "control_after_generate": "fixed"}
    assert api(workflow(named))["3"]["inputs"] == {"x": 1, "y": 2}


def test_dynamic_input_names_are_kept() -> None:
    ui = workflow(
        node(1, "LoadImage", values=["a.png", "image"], outputs=["IMAGE", "MASK"]),
        node(2, "Batch", inputs=[("images.image_1", "IMAGE", 1), ("images.image_2", "IMAGE", 2)]),
        links=[link(1, 1, 0, 2, 0), link(2, 1, 0, 2, 1)],
    )
    assert api(ui)["2"]["inputs"] == {"images.image_1": ["1", 0], "images.image_2": ["1", 0]}


def test_version_1_with_links_as_objects() -> None:
    ui = lora_chain(0)
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    ui["links"] = [dict(zip(keys, entry, strict=True)) for entry in ui["links"]]
    ui["version"] = 1
    assert api(ui) == api(lora_chain(0))


def test_texts_are_queued_as_the_editor_does() -> None:
    queueing = Queueing(random.Random(1), datetime(2026, 3, 4, 5, 6, 7))
    ui = workflow(
        node(1, "CLIPTextEncode", values=["a {red|red} rose // not this\n/* nor this */ with \\{braces\\}"]),
        node(2, "SaveImage", values=["%date:yyyy-MM-dd%/%KSampler.seed%_%CLIP Text Encode (Prompt).text%"]),
        node(
            3,
            "KSampler",
            values=[7, "fixed", 20, 8, "euler", "normal", 1],
            properties={"Node name for S&R": "KSampler"},
        ),
        node(4, "PrimitiveString", values=["{a|b} // stays"]),
    )
    found = api(ui, queueing=queueing)
    assert found["1"]["inputs"]["text"] == "a red rose \n with {braces}"
    prefix = found["2"]["inputs"]["filename_prefix"]
    assert prefix.startswith("2026-03-04/7_a {red_red} rose")
    assert found["4"]["inputs"]["value"] == "{a|b} // stays"


def test_the_same_seed_chooses_the_same_options() -> None:
    ui = workflow(node(1, "CLIPTextEncode", values=["{a|b|c|d|e|f|g} {1|2|3|4|5|6}"]))
    texts = {str(api(ui, queueing=Queueing.fresh(5))["1"]["inputs"]["text"]) for _ in range(5)}
    assert len(texts) == 1
    assert len({str(api(ui, queueing=Queueing.fresh(s))["1"]["inputs"]["text"]) for s in range(30)}) > 5


def test_titles_and_model_sources_are_kept() -> None:
    models = [{"name": "a.safetensors", "url": "https://example.org/a", "directory": "vae", "hash": "12"}]
    ui = workflow(
        node(1, "VAELoader", values=["a.safetensors"], properties={"models": models}), node(2, "VAELoader")
    )
    ui["nodes"][1]["title"] = "Mine"
    ui["models"] = models
    graph = parse_ui(ui)
    assert [entry.title for entry in graph.nodes.values()] == ["Load VAE", "Mine"]
    assert [(m.name, m.folder, m.url, m.hash) for m in graph.models] == [
        ("a.safetensors", "vae", "https://example.org/a", "12")
    ]
    assert model_references({"nodes": [], "models": [1, {"name": 3}]}) == ()


@pytest.mark.parametrize("kind", ["Reroute", "ImageInvert"])
def test_a_chain_of_ten_thousand_nodes(kind: str) -> None:
    count = 10_000
    name = "" if kind == "Reroute" else "image"
    nodes = [node(1, "EmptyImage", values=[8, 8, 1, 0], outputs=["IMAGE"])]
    nodes += [node(i, kind, inputs=[(name, "IMAGE", i)], outputs=["IMAGE"]) for i in range(2, count)]
    nodes.append(node(count, "PreviewImage", inputs=[("images", "IMAGE", count)]))
    ui = workflow(*nodes, links=[link(i, i - 1, 0, i, 0) for i in range(2, count + 1)])
    started = time.perf_counter()
    found = api(ui)
    assert time.perf_counter() - started < 10
    origin = "1" if kind == "Reroute" else str(count - 1)
    assert found[str(count)]["inputs"]["images"] == [origin, 0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"nodes": [3]}, "node 0 of the workflow is a number"),
        ({"nodes": [{"id": 1}]}, "has no type"),
        ({"nodes": [{"type": "X", "id": None}]}, "has the id None"),
        ({"nodes": [], "links": ["x"]}, "is not a link"),
        ({"nodes": [], "links": [[1, 2, "a", 3, 0, "X"]]}, "names slot 'a'"),
        ({"nodes": [], "definitions": {"subgraphs": [1]}}, "subgraph definition is a number"),
        ({"nodes": [], "definitions": {"subgraphs": [{"id": "a"}]}}, "has no list of nodes"),
    ],
)
def test_damaged_workflows_say_where(damage: Any, message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        parse_ui(damage)


def test_odd_but_readable_workflows_are_read() -> None:
    ui = workflow(node(1, "PreviewImage", inputs=[("images", "IMAGE", 77)]), node(1, "VAELoader"))
    graph = parse_ui(ui)
    assert list(graph.nodes) == ["1"]
    assert "two nodes with id 1" in graph.notes[0]
    assert graph.nodes["1"].inputs == {}


def test_every_core_class_has_a_schema() -> None:
    schemas = core_schemas()
    assert len(schemas) > 600
    assert all(schemas[name].name == name for name in schemas)


def test_choices_of_newer_classes_bring_further_widgets() -> None:
    ui = workflow(node(1, "ResizeImageMaskNode", values=["scale dimensions", 512, 256, "center", "area"]))
    assert api(ui)["1"]["inputs"] == {
        "resize_type": "scale dimensions",
        "resize_type.width": 512,
        "resize_type.height": 256,
        "resize_type.crop": "center",
        "scale_method": "area",
    }


def test_group_nodes_unfold() -> None:
    group: Ui = {
        "nodes": [
            {"index": 0, "type": "CLIPTextEncode", "widgets_values": ["inner"]},
            {
                "index": 1,
                "type": "EmptyLatentImage",
                "widgets_values": [64, 64, 1],
                "outputs": [{"name": "LATENT"}],
            },
            {"index": 2, "type": "KSampler", "widgets_values": [1, "fixed", 20, 8, "euler", "normal", 1]},
        ],
        "links": [[0, 0, 2, 1, 5, "CONDITIONING"], [1, 0, 2, 3, 6, "LATENT"]],
        "external": [],
    }
    values = ["outer", 128, 96, 2, 77, "randomize", 9, 8, "euler", "normal", 1]
    ui = workflow(
        node(1, "CheckpointLoaderSimple", values=["a"], outputs=["MODEL", "CLIP", "VAE"]),
        node(2, "CLIPTextEncode", values=["no"], inputs=[("clip", "CLIP", 3)], outputs=["CONDITIONING"]),
        node(
            12,
            "workflow>Mine",
            values=values,
            inputs=[("clip", "CLIP", 1), ("model", "MODEL", 2), ("negative", "CONDITIONING", 4)],
            outputs=["LATENT"],
        ),
        node(13, "VAEDecode", inputs=[("samples", "LATENT", 5), ("vae", "VAE", 6)]),
        links=[
            link(1, 1, 1, 12, 0),
            link(2, 1, 0, 12, 1),
            link(3, 1, 1, 2, 0),
            link(4, 2, 0, 12, 2),
            link(5, 12, 0, 13, 0),
            link(6, 1, 2, 13, 1),
        ],
    )
    ui["extra"] = {"groupNodes": {"Mine": group}}
    found = api(ui)
    assert found["12:0"]["inputs"] == {"text": "outer", "clip": ["1", 1]}
    assert found["12:1"]["inputs"] == {"width": 128, "height": 96, "batch_size": 2}
    sampler = found["12:2"]["inputs"]
    assert (sampler["seed"], sampler["steps"]) == (77, 9)
    assert sampler["model"] == ["1", 0]
    assert sampler["positive"] == ["12:0", 0]
    assert sampler["negative"] == ["2", 0]
    assert sampler["latent_image"] == ["12:1", 0]
    assert found["13"]["inputs"] == {"samples": ["12:2", 0], "vae": ["1", 2]}


def test_texts_of_a_host_are_final_as_in_the_editor() -> None:
    found = api(text_subgraph(["host {w|w} // stays"]))
    assert found["200:195"]["inputs"]["text"] == "host {w|w} // stays"


def test_values_that_nothing_names_are_told() -> None:
    graph = parse_ui(workflow(node(1, "Strange", values=[1, 2])))
    assert graph.nodes["1"].inputs == {}
    assert "2 widget values were left out" in graph.notes[0]


def test_saved_names_that_the_class_does_not_have_are_told() -> None:
    values = {"width": 32, "hight": 16, "control_after_generate": "fixed"}
    graph = parse_ui(workflow(node(1, "EmptyLatentImage", values=values)))
    assert graph.nodes["1"].inputs == {"width": 32, "height": 512, "batch_size": 1}
    (note,) = graph.notes
    assert "node 1 (EmptyLatentImage): the class has no input 'hight'" in note
