"""Nodes that turn prompts into conditionings, and those that say how."""

from __future__ import annotations

from typing import Annotated

from loraloom.engine.node import NodeRun, Number, node
from loraloom.nodes.sockets import Clip, Conditioning, Prompt
from loraloom.runtime.prompts import embedding_files, encode, loaded

Side = Annotated[int, Number(min=0, max=16384)]
TokenCount = Annotated[int, Number(min=0, max=10000, step=1)]


@node(
    "CLIPTextEncode",
    category="conditioning",
    display_name="CLIP Text Encode (Prompt)",
    is_changed=embedding_files,
)
def encode_text(text: Prompt, clip: Clip, *, run: NodeRun) -> Conditioning:
    """Encode a prompt with the text encoders of a model."""
    return encode(clip, text, {}, run)


@node("CLIPSetLastLayer", category="conditioning", display_name="CLIP Set Last Layer")
def set_last_layer(
    clip: Clip, stop_at_clip_layer: Annotated[int, Number(min=-24, max=-1, step=1)] = -1
) -> Clip:
    """Use an earlier layer of the text encoders (“clip skip”): -1 is the last, -2 the one before."""
    return loaded(clip).with_clip_skip(stop_at_clip_layer)


@node(
    "CLIPTextEncodeFlux",
    category="advanced/conditioning/flux",
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_flux",
)
def encode_text_flux(
    clip: Clip,
    clip_l: Prompt,
    t5xxl: Prompt,
    guidance: Annotated[float, Number(min=0.0, max=100.0, step=0.1)] = 3.5,
    *,
    run: NodeRun,
) -> Conditioning:
    """Encode a prompt per text encoder of Flux, with the guidance value that the model was distilled with."""
    return encode(clip, {"l": clip_l, "t5xxl": t5xxl}, {"guidance": guidance}, run)


@node(
    "CLIPTextEncodeSDXL",
    category="advanced/conditioning",
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_clip_sdxl",
)
def encode_text_sdxl(
    *,
    clip: Clip,
    width: Side = 1024,
    height: Side = 1024,
    crop_w: Side = 0,
    crop_h: Side = 0,
    target_width: Side = 1024,
    target_height: Side = 1024,
    text_g: Prompt,
    text_l: Prompt,
    run: NodeRun,
) -> Conditioning:
    """Encode a prompt per text encoder of SDXL, with the picture sizes that the model is told."""
    sizes = {
        "width": width,
        "height": height,
        "crop_w": crop_w,
        "crop_h": crop_h,
        "target_width": target_width,
        "target_height": target_height,
    }
    return encode(clip, {"g": text_g, "l": text_l}, sizes, run)


@node(
    "CLIPTextEncodeSDXLRefiner",
    category="advanced/conditioning",
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_clip_sdxl",
)
def encode_text_sdxl_refiner(
    *,
    ascore: Annotated[float, Number(min=0.0, max=1000.0, step=0.01)] = 6.0,
    width: Side = 1024,
    height: Side = 1024,
    text: Prompt,
    clip: Clip,
    run: NodeRun,
) -> Conditioning:
    """Encode a prompt for SDXL's refiner, with the aesthetic score that it is told."""
    return encode(clip, text, {"aesthetic_score": ascore, "width": width, "height": height}, run)


@node(
    "T5TokenizerOptions",
    category="_for_testing/conditioning",
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_cond",
)
def t5_tokenizer_options(clip: Clip, min_padding: TokenCount = 0, min_length: TokenCount = 0) -> Clip:
    """Set how far T5 prompts are padded."""
    padded = loaded(clip).with_option("t5xxl_min_padding", min_padding)
    return padded.with_option("t5xxl_min_length", min_length)
