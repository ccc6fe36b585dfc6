"""Nodes of several modules in one run, through validation and the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from PIL import Image as PillowImage
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.models.checkpoint import open_checkpoint
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
        "again": entry("PreviewAny", source=["show", 0]),
        "kept": entry("SaveImage", images=["decode", 0], filename_prefix="before"),
        "seen": entry("PreviewImage", images=["kept", 0]),
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
    assert sorted(sizes) == [(96, 96), (96, 96), (128, 128), (128, 128)]
    assert run.ui["show"] == {"text": ["96"]}
    assert run.ui["again"] == {"text": ["96"]}
    assert any("nowhere" in warning for warning in run.warnings)


def test_a_lora_of_one_prompt_has_its_receipts_in_the_result_and_in_the_picture(
    session: Session, tmp_path: Path
) -> None:
    model, clip, _ = open_checkpoint(tmp_path / "models/checkpoints/tiny.safetensors")
    assert clip is not None
    path, target = next((p, t) for p, t in model.lora_aliases().items() if p.endswith("attn1.to_q"))
    words = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    modules = [
        ("lora_unet_" + path.replace(".", "_"), model.weights.shapes[target.weight]),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", clip.parts[0].weights.shapes[words]),
    ]
    (tmp_path / "models/loras").mkdir()
    save_file(tiny_models.lora(modules), tmp_path / "models/loras/style.safetensors")
    graph: dict[str, JSON] = {
        "load": entry("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
        "hook": entry("CreateHookLora", lora_name="style.safetensors", strength_model=0.8, strength_clip=0.5),
        "later": entry("CreateHookKeyframe", strength_mult=0.5, start_percent=0.4),
        "keyed": entry("SetHookKeyframes", hooks=["hook", 0], hook_kf=["later", 0]),
        "clip": entry(
            "SetClipHooks", clip=["load", 1], apply_to_conds=True, schedule_clip=False, hooks=["keyed", 0]
        ),
        "prompt": entry("CLIPTextEncode", clip=["clip", 0], text="a rose"),
        "other": entry("CLIPTextEncode", clip=["load", 1], text="blurry"),
        "empty": entry("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sample": entry(
            "KSampler", model=["load", 0], positive=["prompt", 0], negative=["other", 0], seed=1, steps=2,
            cfg=2.0, sampler_name="euler", scheduler="normal", latent_image=["empty", 0], denoise=1.0,
        ),
        "decode": entry("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": entry("SaveImage", images=["decode", 0], filename_prefix="picture"),
    }  # fmt: skip
    run = session.run(graph)
    told = [(r["node"], r["name"], r["strength_model"], r["strength_clip"]) for r in run.receipts]
    assert told == [("clip", "style.safetensors", None, 0.5), ("sample", "style.safetensors", 0.8, None)]
    assert all(receipt["complete"] and receipt["matched"] == 1 for receipt in run.receipts)
    assert run.receipts[1]["schedule"] == [{"start_percent": 0.4, "strength": 0.4}]
    with PillowImage.open(run.outputs[0].path) as picture:
        stored = json.loads(picture.info["loraloom"])
    assert [receipt["node"] for receipt in stored["loras"]] == ["clip", "sample"]
    again = session.run(graph, set={"save.filename_prefix": "again"})
    assert [receipt["node"] for receipt in again.receipts] == ["clip", "sample"]


def test_a_wrong_expression_names_its_node(session: Session) -> None:
    graph: dict[str, JSON] = {
        "sum": entry("ComfyMathExpression", expression="__import__('os')"),
        "show": entry("PreviewAny", source=["sum", 0]),
    }
    with pytest.raises(NodeFailure, match="sum"):
        session.run(graph)
