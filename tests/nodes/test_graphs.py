"""Nodes of several modules in one run, through validation and the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from PIL import Image as PillowImage

from loraloom.session import NodeFailure, Session
from loraloom.workflow.graph import JSON
from tests import tiny_models


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    tiny_models.write_sd15(tmp_path / "models/checkpoints/tiny.safetensors")
    with Session(tmp_path / "models", output_dir=tmp_path / "output", device="cpu", dtype="fp32") as opened:
        yield opened


def entry(class_type: str, **inputs: object) -> JSON:
    return {"class_type": class_type, "inputs": cast("dict[str, JSON]", inputs)}


def test_a_second_pass_whose_size_is_computed(session: Session) -> None:
    sampling: dict[str, JSON] = {
        "model": ["load", 0],
        "positive": ["prompt", 0],
        "negative": ["prompt", 0],
        "seed": 1,
        "steps": 1,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "normal",
    }
    graph: dict[str, JSON] = {
        "load": entry("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
        "skip": entry("CLIPSetLastLayer", clip=["load", 1], stop_at_clip_layer=-2),
        "prompt": entry("CLIPTextEncode", clip=["skip", 0], text="a (red:1.3) rose embedding:nowhere"),
        "side": entry("PrimitiveInt", value=64),
        "double": entry("ComfyMathExpression", expression="a * 2", **{"values.a": ["side", 0]}),
        "empty": entry("EmptyLatentImage", width=["side", 0], height=64, batch_size=1),
        "first": entry("KSampler", latent_image=["empty", 0], denoise=1.0, **sampling),
        "larger": entry(
            "LatentUpscale",
            samples=["first", 0],
            upscale_method="bislerp",
            width=["double", 1],
            height=0,
            crop="disabled",
        ),
        "second": entry("KSampler", latent_image=["larger", 0], denoise=0.5, **sampling),
        "switch": entry("ComfySwitchNode", switch=True, on_false=["first", 0], on_true=["second", 0]),
        "decode": entry("VAEDecode", samples=["switch", 0], vae=["load", 2]),
        "fit": entry(
            "ResizeImageMaskNode",
            input=["decode", 0],
            resize_type="scale dimensions",
            scale_method="lanczos",
            **{"resize_type.width": 96, "resize_type.height": 0, "resize_type.crop": "center"},
        ),
        "size": entry("GetImageSize", image=["fit", 0]),
        "show": entry("PreviewAny", source=["size", 0]),
        "batch": entry("BatchImagesNode", **{"images.image0": ["fit", 0], "images.image1": ["decode", 0]}),
        "save": entry(
            "SaveImageAdvanced",
            images=["batch", 0],
            filename_prefix="picture",
            format="png",
            **{"format.bit_depth": "8-bit", "format.input_color_space": "sRGB"},
        ),
    }
    run = session.run(graph)
    sizes: list[tuple[int, int]] = []
    for output in run.outputs:
        with PillowImage.open(output.path) as picture:
            sizes.append(picture.size)
    assert sizes == [(96, 96), (96, 96)]
    assert run.ui["show"] == {"text": ["96"]}
    assert any("nowhere" in warning for warning in run.warnings)


def test_a_wrong_expression_names_its_node(session: Session) -> None:
    graph: dict[str, JSON] = {
        "sum": entry("ComfyMathExpression", expression="__import__('os')"),
        "show": entry("PreviewAny", source=["sum", 0]),
    }
    with pytest.raises(NodeFailure, match="sum"):
        session.run(graph)
