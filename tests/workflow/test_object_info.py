"""Schemas ↔ /object_info, against the answer of ComfyUI v0.3.64 for all of its classes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from loraloom.errors import WorkflowError
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.implemented import known_schemas
from loraloom.workflow.object_info import from_object_info, object_info

FIGURES = Path(__file__).parents[1] / "data" / "parity" / "object_info.json.gz"
# What the server that was asked had in its folders.
FILES = {
    "checkpoints": ["v1-5-pruned-emaonly-fp16.safetensors"],
    "loras": ["pixel.safetensors"],
    "vae": ["ae.safetensors"],
    "text_encoders": ["clip_l.safetensors"],
    "diffusion_models": ["flux1-dev.safetensors"],
}
# Choices that versions after v0.3.64 added, behind those that it had.
NEWER = {
    ("CLIPLoader", "type"): (
        "flux2 ovis longcat_image cogvideox lens pixeldit ideogram4 boogu krea2 joyimage mage minimax yue2"
        " flux3 moss_image fibo2"
    ),
    ("FluxKontextMultiReferenceLatentMethod", "reference_latents_method"): "index_timestep_zero",
    ("DualCLIPLoader", "type"): "hunyuan_video_15 kandinsky5 kandinsky5_image ltxv newbie ace",
}


def entries() -> dict[str, Any]:
    return json.loads(gzip.decompress(FIGURES.read_bytes()))


def listed(folder: str) -> list[str]:
    return FILES.get(folder, [])


def comparable(entry: Any) -> Any:
    """An entry without descriptions; inputs without options have empty ones."""
    entry = json.loads(json.dumps(entry))
    del entry["description"]
    return entry


def with_options(entry: Any) -> Any:
    entry = json.loads(json.dumps(entry))
    for section in ("required", "optional"):
        for spec in entry["input"].get(section, {}).values():
            if len(spec) == 1:
                spec.append({})
    return entry


def with_newer(entry: Any) -> Any:
    entry = with_options(entry)
    for (class_name, name), choices in NEWER.items():
        if entry["name"] == class_name:
            kind, options = entry["input"]["required"][name]
            (options["options"] if kind == "COMBO" else kind).extend(choices.split())
    return entry


def test_every_class_of_the_table_equals_comfyui() -> None:
    found = entries()
    assert len(found) == 382
    schemas = core_schemas()
    for name, entry in found.items():
        assert comparable(object_info(schemas[name], listed)) == with_newer(entry), name


def test_every_entry_survives_the_way_there_and_back() -> None:
    for name, entry in entries().items():
        schema = from_object_info(entry)
        assert comparable(object_info(schema, lambda _: ())) == with_options(entry), name
        assert schema.name == name


def test_order_of_inputs_is_kept() -> None:
    for name, entry in entries().items():
        sections = entry["input_order"]
        wanted = [*sections.get("required", ()), *sections.get("optional", ())]
        assert [i.name for i in core_schemas()[name].inputs] == wanted


@pytest.mark.parametrize(
    "entry", [{}, {"name": "X", "input": 3}, {"name": "X", "input": {"required": {"a": []}}}]
)
def test_other_things_are_refused(entry: Any) -> None:
    with pytest.raises(WorkflowError, match="not in ComfyUI's form"):
        from_object_info(entry)


def test_a_class_that_workflows_alone_show_has_our_own_schema() -> None:
    steps = known_schemas()["Flux2Scheduler"].input("steps")
    assert steps is not None and steps.options["min"] == 1 and steps.default == 20
    cut = known_schemas()["LatentCutToBatch"]
    assert [entry.name for entry in cut.inputs] == ["samples", "dim", "slice_size"]
