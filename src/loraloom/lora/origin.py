"""What a LoRA file is for, who wrote it and how: told from names, shapes and metadata. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from loraloom.lora.algebras import recognise
from loraloom.lora.file import LoraFile
from loraloom.lora.module_names import take_apart

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "sd15": "Stable Diffusion 1.5",
        "sd20": "Stable Diffusion 2",
        "sdxl": "Stable Diffusion XL",
        "sdxl_refiner": "the SDXL refiner",
        "sd3": "Stable Diffusion 3",
        "flux": "Flux.1",
        "flux2": "Flux.2",
        "chroma": "Chroma",
        "qwen_image": "Qwen-Image",
        "z_image": "Z-Image",
        "wan": "Wan",
        "hunyuan_video": "HunyuanVideo",
        "hidream": "HiDream",
        "text": "a text encoder",
    }
)
"""Family name → what people call it."""

_PATHS: tuple[tuple[str, str], ...] = (
    (r"img_mlp_fc1|img_mod_linear|individual_token_refiner", "hunyuan_video"),
    (r"distilled_guidance_layer", "chroma"),
    (r"(double|single)_stream_modulation|to_qkv_mlp_proj", "flux2"),
    (r"(double|single)_stream_blocks", "hidream"),
    (r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_", "qwen_image"),
    (r"single_transformer_blocks_|double_blocks_\d+_|single_blocks_\d+_", "flux"),
    (r"^transformer_blocks_\d+_(attn2?_|ff_|norm1_)", "joint"),
    (r"joint_blocks_\d+_", "sd3"),
    (r"^layers_\d+_(attention|feed_forward|adaLN)|(noise|context)_refiner_", "z_image"),
    (r"^blocks_\d+_(self_attn|cross_attn|ffn)", "wan"),
    (r"(down|up|input|output)_blocks?_\d|mid(dle)?_block_", "unet"),
)
"""Flattened path pattern → family; the first that matches counts. "unet", "joint": to be told by shapes."""

_PATTERNS = tuple((re.compile(pattern), family) for pattern, family in _PATHS)

_CONTEXT = MappingProxyType({768: "sd15", 1024: "sd20", 2048: "sdxl"})
"""Width of the text that a UNet's cross-attention reads → family."""

_METADATA: tuple[tuple[str, str], ...] = (
    ("stable-diffusion-xl", "sdxl"), ("sdxl", "sdxl"), ("stable-diffusion-v1", "sd15"), ("sd_v1", "sd15"),
    ("sd1", "sd15"), ("stable-diffusion-v2", "sd20"), ("sd_v2", "sd20"), ("stable-diffusion-3", "sd3"),
    ("sd3", "sd3"), ("flux-2", "flux2"), ("flux2", "flux2"), ("flux", "flux"), ("chroma", "chroma"),
    ("qwen", "qwen_image"), ("z-image", "z_image"), ("z_image", "z_image"), ("lumina", "z_image"),
    ("wan", "wan"),    ("hunyuan", "hunyuan_video"), ("hidream", "hidream"),
)  # fmt: skip


def base_of(file: LoraFile) -> str | None:
    """The family that a file was made for: by its shapes, and by its metadata where those are silent."""
    votes: Counter[str] = Counter()
    for module in file.modules:
        name = take_apart(module.name)
        if name.component == "clip":
            continue
        path = name.path.replace(".", "_")
        family = next((family for pattern, family in _PATTERNS if pattern.search(path)), None)
        if family is not None:
            votes[family] += 1
    if len(votes) > 1:
        del votes["joint"]  # others say more
    if votes:
        family = votes.most_common(1)[0][0]
        match family:
            case "unet":
                return _unet_of(file)
            case "joint":
                return _joint_transformer_of(file)
            case _:
                return family
    said = said_base(file.metadata)
    if said is not None:
        return said
    text = any(take_apart(module.name).component == "clip" for module in file.modules)
    return "text" if text else None


def _unet_of(file: LoraFile) -> str | None:
    """Which Stable Diffusion a UNet's LoRA is for, by the width of the text that cross-attention reads."""
    deep = False
    for module in file.modules:
        if "attn2" in module.name and re.search(r"to_[kv]", module.name):
            shapes = file.shapes(module)
            for found in recognise(shapes)[0]:
                width = found.algebra.inputs(found.pick(shapes))
                if width is not None and width in _CONTEXT:
                    return _CONTEXT[width]
        deep = deep or re.search(r"transformer_blocks[._][1-9]", module.name) is not None
    return "sdxl" if deep else said_base(file.metadata)


def _joint_transformer_of(file: LoraFile) -> str | None:
    """Which model with joint attention a LoRA of its two-stream blocks alone is for, in diffusers' names:
    by their width, and by how many there are where widths are the same."""
    width, last, joint = 0, 0, False
    for module in file.modules:
        name = take_apart(module.name).path.replace(".", "_")
        found = re.match(r"transformer_blocks_(\d+)_(attn2?_(?:to_[qkv]|add_[qkv]_proj)?|ff_context)?", name)
        if found is None:
            continue
        last = max(last, int(found[1]))
        joint = joint or "_add" in name or "_context" in name
        down = module.tensors.get("down")
        if down is not None and (found[2] or "").endswith(("to_q", "to_k", "to_v", "_proj")):
            width = file.header.tensors[down].shape[-1]
    if width == _WIDE:
        return "flux" if last < _FLUX_BLOCKS else "qwen_image"
    return "sd3" if joint else said_base(file.metadata)


_WIDE, _FLUX_BLOCKS = 3072, 19
"""The width of Flux.1's and of Qwen-Image's blocks, and how many with two streams Flux.1 has."""


def said_base(metadata: Mapping[str, str]) -> str | None:
    """The family that the metadata names."""
    for key in ("modelspec.architecture", "ss_base_model_version", "ss_architecture"):
        text = metadata.get(key, "").lower()
        for part, family in _METADATA:
            if part in text:
                return family
    return None


def title_of(family: str | None) -> str:
    return TITLES.get(family, family) if family else "an unknown model"


def trainer_of(file: LoraFile) -> str:
    """The program that wrote a file, as far as the file shows."""
    metadata = file.metadata
    module = metadata.get("ss_network_module", "")
    software = _software(metadata.get("software", ""))
    if software:
        return software
    if any(key.startswith("ot_") for key in metadata):
        return "OneTrainer"
    if module.startswith("lycoris"):
        return "LyCORIS in sd-scripts"
    if module:
        return "sd-scripts" if "musubi" not in metadata.get("ss_training_comment", "") else "musubi-tuner"
    if "lora_adapter_metadata" in metadata:
        return "diffusers with PEFT"
    if file.config:
        return "PEFT"
    if any(".processor." in one.name and re.search(r"(qkv|proj)[12]?$", one.name) for one in file.modules):
        return "XLabs"
    return "unknown"


def _software(text: str) -> str:
    """ai-toolkit and others write {"name": …, "version": …} as JSON."""
    if not text:
        return ""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return text[:60]
    if isinstance(found, dict):
        name: object = found.get("name")  # pyright: ignore[reportUnknownMemberType]
        return name[:60] if isinstance(name, str) else ""
    return ""


_SUFFIX_STYLES = (
    ("processor", "attention processors"),
    ("lora_down", "lora_up/down"),
    ("lora_A", "lora_A/B"),
    ("lora_linear_layer", "lora_linear_layer"),
    ("lora.down", "lora.up/down"),
)


def dialect_of(file: LoraFile) -> str:
    """How a file spells its names: the prefix's grammar and the suffixes' ("kohya (lora_up/down)")."""
    spellings = Counter(take_apart(module.name).dialect for module in file.modules)
    prefix = spellings.most_common(1)[0][0] if spellings else "none"
    if len(spellings) > 1:
        prefix = " + ".join(name for name, _ in spellings.most_common(3))
    keys = [module.tensors["down"] for module in file.modules if "down" in module.tensors][:50]
    marked = next((said for mark, said in _SUFFIX_STYLES if any(mark in key for key in keys)), None)
    return f"{prefix} ({marked})" if marked else prefix
