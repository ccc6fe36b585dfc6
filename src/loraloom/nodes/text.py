"""Nodes that turn prompts into conditionings, and those that say how."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from loraloom.engine.node import Choice, NodeRun, Number, node
from loraloom.nodes.sockets import Clip, Conditioning, Prompt
from loraloom.runtime.prompts import embedding_files, encode, loaded

LUMINA2_SYSTEMS = {
    "superior": "You are an assistant designed to generate superior images with the superior degree of"
    " image-text alignment based on textual prompts or user prompts.",
    "alignment": "You are an assistant designed to generate high-quality images with the highest degree of"
    " image-text alignment based on textual prompts.",
}
"""Texts that Lumina 2 was trained with in front of prompts (Qin et al. 2025)."""

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
    "CLIPTextEncodeSD3",
    category="advanced/conditioning",
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_sd3",
)
def encode_text_sd3(
    clip: Clip,
    clip_l: Prompt,
    clip_g: Prompt,
    t5xxl: Prompt,
    empty_padding: Annotated[str, Choice(("none", "empty_prompt"))],
    *,
    run: NodeRun,
) -> Conditioning:
    """Encode a prompt per text encoder of Stable Diffusion 3; "none" leaves out encoders without a prompt."""
    encoders = loaded(clip)
    if empty_padding == "none" and not t5xxl:
        encoders = encoders.with_option("t5xxl_min_length", 0)
    if empty_padding == "none" and not clip_l and not clip_g:
        encoders = replace(encoders, parts=tuple(p for p in encoders.parts if not p.role.startswith("clip")))
    return encode(encoders, {"l": clip_l, "g": clip_g, "t5xxl": t5xxl}, {}, run)


@node(
    "CLIPTextEncodeLumina2",
    category="conditioning",
    display_name="CLIP Text Encode for Lumina2",
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_lumina2",
)
def encode_text_lumina2(
    system_prompt: Annotated[str, Choice(tuple(LUMINA2_SYSTEMS))],
    user_prompt: Prompt,
    clip: Clip,
    *,
    run: NodeRun,
) -> Conditioning:
    """Encode a prompt behind one of the two texts that Lumina 2 was trained with."""
    return encode(clip, f"{LUMINA2_SYSTEMS[system_prompt]} <Prompt Start> {user_prompt}", {}, run)


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
