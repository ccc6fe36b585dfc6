"""Validation: every kind of problem, in ComfyUI's words, and what is accepted."""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.errors import MissingModelsError, WorkflowError
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.choices import nearest_choices
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.graph import Graph, GraphNode, Link, ModelReference
from loraloom.workflow.report import Report
from loraloom.workflow.validate import validate

FILES = {
    "checkpoints": ["sd/base.safetensors", "other.safetensors"],
    "vae": ["ae.safetensors", "a/twice.safetensors", "b/twice.safetensors"],
    "loras": ["1.5\\style.safetensors"],
    "input": ["cat.png"],
}


def check(prompt: dict[str, Any], **options: Any) -> Report:
    return validate(parse_api(prompt), core_schemas(), lambda folder: FILES.get(folder, []), **options)


def save(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", **inputs}}


def image(**inputs: Any) -> dict[str, Any]:
    return {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0, **inputs},
    }


def problem(prompt: dict[str, Any]) -> tuple[str, str, str]:
    found = check(prompt).problems
    assert len(found) == 1, found
    return found[0].type, found[0].message, found[0].details


def test_a_good_graph() -> None:
    report = check({"1": image(), "2": save(images=["1", 0])})
    assert report.ok
    assert report.outputs == ("2",)
    report.raise_if_bad()


def test_missing_inputs_are_answered_as_comfyui_does() -> None:
    body = check({"9": {"class_type": "SaveImage", "inputs": {}}}).to_response()
    message = "Required input is missing"
    errors = [
        {
            "type": "required_input_missing",
            "message": message,
            "details": name,
            "extra_info": {"input_name": name},
        }
        for name in ("filename_prefix", "images")
    ]
    node = body["node_errors"]["9"]  # type: ignore[call-overload, index]
    assert sorted(node["errors"], key=str) == sorted(errors, key=str)  # type: ignore[call-overload, index, arg-type]
    assert node["dependent_outputs"] == ["9"]  # type: ignore[call-overload, index]
    error: Any = body["error"]
    assert error["type"] == "prompt_outputs_failed_validation"
    assert sorted(error["details"].split("\n")) == [f"{message}: filename_prefix", f"{message}: images"]


def test_empty_and_unknown_are_answered_as_comfyui_does() -> None:
    assert check({}).to_response() == {
        "error": {
            "type": "prompt_no_outputs",
            "message": "Prompt has no outputs",
            "details": "",
            "extra_info": {},
        },
        "node_errors": {},
    }
    assert check({"1": {"class_type": "Nope", "inputs": {}}}).to_response() == {
        "error": {
            "type": "invalid_prompt",
            "message": "Cannot execute because node Nope does not exist.",
            "details": "Node ID '#1'",
            "extra_info": {},
        },
        "node_errors": {},
    }


@pytest.mark.parametrize(
    ("prompt", "kind", "details"),
    [
        ({"1": image(width=0), "2": save(images=["1", 0])}, "value_smaller_than_min", "width"),
        ({"1": image(color=1 << 30), "2": save(images=["1", 0])}, "value_bigger_than_max", "color"),
        ({"1": image(width="wide"), "2": save(images=["1", 0])}, "invalid_input_type", "width, wide"),
        ({"1": image(width=None), "2": save(images=["1", 0])}, "invalid_input_type", "width, None"),
        ({"1": image(width=[1, 2, 3]), "2": save(images=["1", 0])}, "invalid_input_type", "width"),
        ({"2": save(images=["7", 0])}, "bad_linked_input", "no node 7"),
        ({"1": image(), "2": save(images=["1", 3])}, "bad_linked_input", "no output 3"),
        ({"1": image(), "2": save(images=["1", -1])}, "bad_linked_input", "no output -1"),
        ({"2": save(images="text")}, "bad_linked_input", "images: text"),
        (
            {
                "1": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
                "2": save(images=["1", 0]),
            },
            "return_type_mismatch",
            "images, received_type(VAE) mismatch input_type(IMAGE)",
        ),
    ],
)
def test_kinds_of_problems(prompt: dict[str, Any], kind: str, details: str) -> None:
    found = problem(prompt)
    assert found[0] == kind
    assert details in found[2]


def test_literals_are_converted_as_comfyui_does() -> None:
    report = check(
        {"1": image(width="128", height=64.9, batch_size=True), "2": save(images=["1", 0], filename_prefix=5)}
    )
    assert report.ok
    assert report.graph.nodes["1"].inputs == {"width": 128, "height": 64, "batch_size": 1, "color": 0}
    assert report.graph.nodes["2"].inputs["filename_prefix"] == "5"


def test_value_not_in_list() -> None:
    scale = {
        "class_type": "ImageScale",
        "inputs": {"image": ["1", 0], "upscale_method": "best", "width": 8, "height": 8, "crop": "center"},
    }
    kind, message, details = problem({"1": image(), "3": scale, "2": save(images=["3", 0])})
    assert (kind, message) == ("value_not_in_list", "Value not in list")
    assert details.startswith("upscale_method: 'best' not in ['nearest-exact', ")


def vae_graph(name: str) -> dict[str, Any]:
    decode = {"class_type": "VAEDecode", "inputs": {"vae": ["1", 0], "samples": ["4", 0]}}
    empty = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    loader = {"class_type": "VAELoader", "inputs": {"vae_name": name}, "_meta": {"title": "My VAE"}}
    return {"1": loader, "4": empty, "3": decode, "2": save(images=["3", 0])}


def test_missing_models_are_reported_apart() -> None:
    graph = parse_api(vae_graph("ae2.safetensors"))
    graph = Graph(graph.nodes, models=(ModelReference("ae2.safetensors", "vae", "https://example.org/ae2"),))
    report = validate(graph, core_schemas(), lambda folder: FILES.get(folder, []))
    assert report.errors == ()
    (missing,) = report.missing
    assert (missing.node_id, missing.node_title, missing.folder, missing.name) == (
        "1",
        "My VAE",
        "vae",
        "ae2.safetensors",
    )
    assert missing.nearest[0] == "ae.safetensors"
    assert missing.url == "https://example.org/ae2"
    with pytest.raises(MissingModelsError):
        report.raise_if_bad()
    body: Any = report.to_response()
    assert body["node_errors"]["1"]["errors"][0]["type"] == "value_not_in_list"


@pytest.mark.parametrize(
    ("name", "found", "note"),
    [
        ("sd/base.safetensors", "sd/base.safetensors", False),
        ("sd\\base.safetensors", "sd/base.safetensors", False),
        ("base.safetensors", "sd/base.safetensors", True),
    ],
)
def test_file_names_in_other_spellings(name: str, found: str, note: bool) -> None:
    prompt = vae_graph("ae.safetensors")
    prompt["3"]["inputs"]["vae"] = ["1", 2]
    prompt["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}
    report = check(prompt)
    assert report.ok
    assert report.graph.nodes["1"].inputs["ckpt_name"] == found
    assert bool(report.notes) == note


def test_backslashes_in_the_folder_list_are_understood_too() -> None:
    inputs = {"lora_name": "1.5/style.safetensors", "strength_model": 1, "model": ["5", 0]}
    prompt: dict[str, Any] = {
        "1": {"class_type": "LoraLoaderModelOnly", "inputs": inputs},
        "2": {"class_type": "ModelSave", "inputs": {"model": ["1", 0], "filename_prefix": "x"}},
        "5": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "other.safetensors"}},
    }
    report = check(prompt)
    assert report.ok, report.problems
    assert report.graph.nodes["1"].inputs["lora_name"] == "1.5\\style.safetensors"


def test_a_name_may_lack_its_suffix() -> None:
    report = check(vae_graph("ae"))
    assert report.graph.nodes["1"].inputs["vae_name"] == "ae.safetensors"
    assert any("vae/ae was found as ae.safetensors" in note for note in report.notes)
    assert not check(vae_graph("twice")).ok


def test_a_bare_name_in_two_subfolders_is_missing() -> None:
    report = check(vae_graph("twice.safetensors"))
    assert report.missing[0].nearest == ("a/twice.safetensors", "b/twice.safetensors")


def test_input_pictures_with_annotations() -> None:
    for name, good in (
        ("cat.png", True),
        ("cat.png [input]", True),
        ("x.png [output]", True),
        ("dog.png", False),
    ):
        report = check(
            {"1": {"class_type": "LoadImage", "inputs": {"image": name}}, "2": save(images=["1", 0])}
        )
        assert report.ok == good
        assert report.missing == ()


def test_unknown_classes_are_each_named_where_an_output_needs_them() -> None:
    prompt: dict[str, Any] = {
        "1": {"class_type": "Strange", "inputs": {}, "_meta": {"title": "Odd"}},
        "2": save(images=["1", 0]),
        "3": {"class_type": "Stranger", "inputs": {}},
        "4": save(images=["3", 0]),
        "5": {"class_type": "Unused", "inputs": {}},
    }
    report = check(prompt)
    assert [p.class_type for p in report.problems] == ["Strange", "Stranger"]
    with pytest.raises(WorkflowError, match="node 1 “Odd” \\(Strange\\)"):
        report.raise_if_bad()


def test_one_bad_output_does_not_stop_the_other() -> None:
    report = check(
        {"1": image(), "2": save(images=["1", 0]), "3": image(width=0), "4": save(images=["3", 0])}
    )
    assert (report.outputs, report.failed_outputs) == (("2",), ("4",))
    assert report.problems[0].outputs == ("4",)
    assert "error" not in report.to_response()


def test_targets_choose_outputs() -> None:
    prompt = {"1": image(), "2": save(images=["1", 0]), "3": image(width=0), "4": save(images=["3", 0])}
    assert check(prompt, targets=["2"]).outputs == ("2",)
    assert check(prompt, targets=["2"]).ok
    assert check(prompt, targets=["1"]).problems[0].type == "prompt_no_outputs"


def chain(count: int) -> dict[str, GraphNode]:
    first = GraphNode("0", "EmptyImage", {"width": 8, "height": 8, "batch_size": 1, "color": 0})
    nodes = {"0": first}
    for i in range(1, count):
        nodes[str(i)] = GraphNode(str(i), "ImageInvert", {"image": Link(str(i - 1), 0)})
    nodes["save"] = GraphNode(
        "save", "SaveImage", {"images": Link(str(count - 1), 0), "filename_prefix": "x"}
    )
    return nodes


def test_a_chain_of_ten_thousand_nodes_in_a_second() -> None:
    gc.collect()
    gc.freeze()  # what other tests left is not looked through again and again
    started = time.process_time()
    report = validate(Graph(chain(10_000)), core_schemas(), lambda _: [])
    took = time.process_time() - started
    gc.unfreeze()
    assert took < 1
    assert report.ok


def test_a_cycle_is_found_and_named() -> None:
    nodes = chain(5)
    nodes["0"] = GraphNode("0", "ImageInvert", {"image": Link("4", 0)})
    report = validate(Graph(nodes), core_schemas(), lambda _: [])
    assert [p.type for p in report.problems] == ["dependency_cycle"]
    assert "node 4" in report.problems[0].details
    assert report.failed_outputs == ("save",)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = (
    SCALARS | st.lists(SCALARS, max_size=3) | st.tuples(st.sampled_from("1234"), st.integers(-2, 3)).map(list)
)
CLASSES = ["KSampler", "SaveImage", "VAEDecode", "EmptyImage", "ImageInvert", "CheckpointLoaderSimple", "X"]
NAMES = ["images", "image", "width", "samples", "vae", "seed", "ckpt_name", "filename_prefix", "color"]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("1234"),
        st.fixed_dictionaries({
            "class_type": st.sampled_from(CLASSES),
            "inputs": st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6),
        }),
    )
)  # fmt: skip
def test_any_graph_gets_a_report(prompt: dict[str, Any]) -> None:
    report = check(prompt)
    json.dumps(report.to_response())
    assert set(report.outputs).isdisjoint(report.failed_outputs)
    assert report.ok or report.failed_outputs or not report.outputs
    assert all(p.line() for p in report.problems)


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        ("EULER", "euler"), ("Euler", "euler"), ("euler_a", "euler_ancestral"),
        ("Euler a", "euler_ancestral"),
        ("DPM++ 2M", "dpmpp_2m"), ("DPM++ 2M Karras", "dpmpp_2m"), ("DPM++ 2M SDE", "dpmpp_2m_sde"),
        ("dpm2 a", "dpm_2_ancestral"), ("eulr", "euler"), ("UniPC", "uni_pc"),
    ],
)  # fmt: skip
def test_a_choice_that_is_none_is_answered_with_the_nearest(value: str, nearest: str) -> None:
    entry = core_schemas()["KSamplerSelect"].input("sampler_name")
    assert entry is not None
    assert nearest_choices(value, entry.choices)[0] == nearest


def test_the_nearest_choices_are_a_hint() -> None:
    found = check({"1": image(), "2": {"class_type": "ImageScale", "inputs": {
        "image": ["1", 0], "upscale_method": "LANCZOS", "width": 8, "height": 8, "crop": "disabled"}},
        "3": save(images=["2", 0])})  # fmt: skip
    assert found.problems[0].hint == "Nearest: lanczos"


def test_a_choice_that_is_like_nothing_has_no_hint() -> None:
    assert nearest_choices("zzzzzz", ["euler", "heun"]) == ()
    assert nearest_choices(3, ["euler", "heun"]) == ()


def test_a_files_letters_may_be_composed_in_another_way() -> None:
    stored = "cafe\u0301.safetensors"
    prompt: dict[str, Any] = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "caf\u00e9.safetensors"}},
        "2": {"class_type": "VAEDecode", "inputs": {"vae": ["1", 0], "samples": ["3", 0]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }
    report = validate(parse_api(prompt), core_schemas(), lambda folder: [stored] if folder == "vae" else [])
    assert report.ok
    assert report.graph.nodes["1"].inputs == {"vae_name": stored}
    assert "letters composed in another way" in report.notes[0]


@pytest.mark.parametrize("listed", [["x4.safetensors"], ["x4.pth", "x4.safetensors"]])
def test_a_pickles_name_means_what_it_was_converted_to(listed: list[str]) -> None:
    prompt: dict[str, Any] = {
        "1": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "x4.pth"}},
        "2": {
            "class_type": "ImageUpscaleWithModel",
            "inputs": {"upscale_model": ["1", 0], "image": ["3", 0]},
        },
        "3": image(),
        "4": save(images=["2", 0]),
    }
    report = validate(parse_api(prompt), core_schemas(), lambda kind: listed if "upscale" in kind else [])
    assert report.graph.nodes["1"].inputs == {"model_name": "x4.safetensors"}
    assert "x4.safetensors beside it is used" in report.notes[0]
