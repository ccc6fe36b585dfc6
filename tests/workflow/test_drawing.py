"""A drawing's settings, as a graph and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraloom.demo.files import WORKFLOW
from loraloom.errors import InputError
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.drawing import DrawSettings, LoraUse, graph_of, settings_of, title_of
from loraloom.workflow.form import form_of
from loraloom.workflow.implemented import implemented_schemas, known_schemas
from loraloom.workflow.sources import read_source
from loraloom.workflow.validate import validate

PLAIN = DrawSettings(
    base="base.safetensors", prompt="a rose", negative="blurry", width=640, height=448, count=2, steps=12,
    cfg=4.5, seed=(1 << 64) - 1, sampler="dpmpp_2m", scheduler="karras",
    loras=(LoraUse("a.safetensors", 0.5), LoraUse("b.safetensors", 1.0, 0.25)),
)  # fmt: skip
FLUX = replace(
    PLAIN, base="flux.safetensors", base_kind="diffusion_models", family="flux", channels=16, cfg=1.0,
    guidance=2.5, text_encoders=("clip_l.safetensors", "t5.safetensors"), text_kind="flux",
    vae="ae.safetensors",
)  # fmt: skip
FILES = {
    "checkpoints": ["base.safetensors"], "diffusion_models": ["flux.safetensors"], "vae": ["ae.safetensors"],
    "loras": ["a.safetensors", "b.safetensors"], "text_encoders": ["clip_l.safetensors", "t5.safetensors"],
    "input": ["x.png"],
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        FLUX,
        replace(FLUX, family="flux2", channels=128, text_encoders=("t5.safetensors",), text_kind="flux2"),
        replace(PLAIN, vae="ae.safetensors"),
        replace(PLAIN, start="x.png", denoise=0.6, width=512, height=512, count=1),
    ],
)
def test_a_graph_runs_and_gives_its_settings_back(settings: DrawSettings) -> None:
    graph = graph_of(settings)
    report = validate(graph, implemented_schemas(), lambda kind: FILES.get(kind, []))
    assert report.problems == ()
    assert settings_of(parse_api(graph.to_api())) == settings
    assert title_of(graph) == "a rose"


def test_latents_that_no_node_is_for_begin_as_others() -> None:
    """The sampler makes of an empty one what the model needs."""
    classes = {node.class_type for node in graph_of(replace(PLAIN, channels=64)).nodes.values()}
    assert "EmptyLatentImage" in classes


def test_a_lora_that_is_off_is_not_in_the_graph() -> None:
    graph = graph_of(replace(PLAIN, loras=(LoraUse("a.safetensors", on=False),)))
    assert not any(node.class_type == "LoraLoader" for node in graph.nodes.values())


def test_the_demos_workflow_amounts_to_settings() -> None:
    found = settings_of(read_source(str(WORKFLOW))[0].graph(known_schemas()))
    assert found is not None
    assert found.base == "loraloom-demo.safetensors"
    assert found.loras == (LoraUse("pixel_art.safetensors", 1),)
    assert found.prompt.startswith("pixel_art")
    assert (found.width, found.height) == (192, 192)


def test_both_workflows_of_the_tutorial_amount_to_settings() -> None:
    found = [settings_of(f.graph(known_schemas())) for f in read_source("examples/lora-tutorial.md")]
    assert [f.base if f else None for f in found] == [
        "v1-5-pruned-emaonly-fp16.safetensors", "Flux/flux1-dev-fp8.safetensors",
    ]  # fmt: skip
    assert found[1] is not None
    assert found[1].text_encoders == ("clip_l.safetensors", "t5xxl_fp8_e4m3fn.safetensors")


def test_a_loop_and_a_graph_without_a_sampler_are_no_settings() -> None:
    looped = {"1": {"class_type": "KSampler", "inputs": {"model": ["2", 0]}},
              "2": {"class_type": "LoraLoader", "inputs": {"model": ["2", 0]}}}  # fmt: skip
    assert settings_of(parse_api(looped)) is None  # pyright: ignore[reportArgumentType]
    assert settings_of(parse_api({"1": {"class_type": "LoadImage", "inputs": {"image": "x"}}})) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (DrawSettings(base=""), "no base model"),
        (replace(FLUX, text_encoders=()), "no text encoders"),
        (replace(FLUX, vae=""), "no VAE"),
        (replace(PLAIN, loras=tuple(LoraUse(f"{i}") for i in range(65))), "at most 64"),
    ],
)
def test_settings_that_make_no_graph_are_explained(settings: DrawSettings, said: str) -> None:
    with pytest.raises(InputError, match=said):
        graph_of(settings)


def test_a_form_has_the_values_of_every_node_and_what_they_may_be() -> None:
    graph = read_source(str(WORKFLOW))[0].graph(known_schemas())
    sections = form_of(graph, implemented_schemas(), lambda kind: [f"{kind}.safetensors"])
    assert [s.class_type for s in sections][:2] == ["CLIPTextEncode", "CLIPTextEncode"]
    by_class = {s.class_type: {f.input: f for f in s.fields} for s in sections}
    lora = by_class["LoraLoader"]
    assert (lora["strength_model"].kind, lora["strength_model"].low) == ("number", -100)
    assert (lora["lora_name"].kind, lora["lora_name"].choices) == ("choice", ("loras.safetensors",))
    sampler = by_class["KSampler"]
    assert sampler["seed"].seed
    assert "euler" in sampler["sampler_name"].choices
    assert "model" not in sampler


def test_an_unknown_class_has_its_values_by_what_they_are() -> None:
    graph = parse_api(
        {"7": {"class_type": "Strange", "inputs": {"a": 1, "b": True, "c": "x", "d": ["1", 0]}}}
    )
    (section,) = form_of(graph, {}, lambda kind: [])
    assert not section.known
    assert [(f.input, f.kind) for f in section.fields] == [("a", "whole"), ("b", "yes_no"), ("c", "text")]
