"""Which family a file belongs to, from its header alone.

Importing this never imports torch: `lora inspect` and validation use it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import loraloom.models.families as families_package
from loraloom.errors import ModelFileError
from loraloom.models.family import Family
from loraloom.models.known_model import most_specific
from loraloom.models.names import Regrouping, Shapes
from loraloom.weights.header import Header

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "net.", "")
"""What files put before native names of a diffusion network, the most specific first."""

MODULE_PREFIXES = ("", "unet.", "transformer.")

_LORA_MARKS = (
    ".lora_down.",
    ".lora_up.",
    ".lora_A.",
    ".lora_B.",
    ".hada_w1",
    ".lokr_w",
    "_lora.up.",
    ".oft_",
    ".lora.",
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A diffusion network within a file: its family and the prefix of its names.

    shapes: of the native weights. regrouping: how the file's tensors (without the prefix) make them up, for
        files in another layout; None: they are the native weights.
    """

    family: Family
    prefix: str
    shapes: Shapes
    regrouping: Regrouping | None = None


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """Every family that Loraloom knows: one per folder of `models/families`."""
    return found_in(families_package.__path__, families_package.__name__)


def family_named(name: str) -> Family | None:
    """The family of that name; None where Loraloom does not know it."""
    return next((family for family in families() if family.name == name), None)


def found_in(folders: Iterable[str], package: str) -> tuple[Family, ...]:
    """The families of a package. ValueError where two have one name, or where a folder with a family.py is no
    package, which importlib would pass over."""
    folders = tuple(folders)
    names = sorted(module.name for module in pkgutil.iter_modules(folders))
    for file in (file for folder in folders for file in Path(folder).glob("*/family.py")):
        if file.parent.name not in names:
            raise ValueError(f"the family in {package}.{file.parent.name} lacks an __init__.py")
    found: dict[str, Family] = {}
    for name in names:
        module = importlib.import_module(f"{package}.{name}.family")
        family: Family | None = getattr(module, "FAMILY", None)
        if family is None:
            raise ValueError(f"{package}.{name}.family does not end in FAMILY")
        if family.name in found or family.name != name:
            raise ValueError(f"the family in {package}.{name} is called {family.name!r}")
        found[name] = family
    return tuple(found.values())


def native_shapes(header: Header, prefix: str) -> Shapes:
    """The shapes of the tensors under a prefix, without it."""
    return {
        name[len(prefix) :]: info.shape for name, info in header.tensors.items() if name.startswith(prefix)
    }


def recognise(header: Header) -> Recognised:
    """The one family whose network the file holds; ModelFileError says what the file looks like instead."""
    for prefix in PREFIXES:
        shapes = native_shapes(header, prefix)
        found = most_specific(family for family in families() if family.matches(shapes)) if shapes else []
        if len(found) > 1:
            raise _ambiguous(header, found)
        if found:
            return Recognised(found[0], prefix, shapes)
    for prefix in MODULE_PREFIXES:
        if found := _in_module_layout(header, prefix):
            return found
    known = ", ".join(family.title for family in families())
    raise ModelFileError(
        f"{header.path}: no diffusion model that is known here: {looks_like(header)}. Known families: {known}"
    )


def _in_module_layout(header: Header, prefix: str) -> Recognised | None:
    """The family whose module names its parameters as the file does."""
    theirs = native_shapes(header, prefix)
    made_up = {family: found for family in families() if (found := family.regrouped(theirs))}
    found = most_specific(made_up)
    if len(found) > 1:
        raise _ambiguous(header, found)
    return Recognised(found[0], prefix, *made_up[found[0]]) if found else None


def _ambiguous(header: Header, found: Iterable[Family]) -> ModelFileError:
    names = " and ".join(family.title for family in found)
    return ModelFileError(
        f"{header.path}: its tensors are those of {names} alike. Two models may have been written into one "
        "file: take the file that its author published. Where this is that file, Loraloom does not tell "
        "these families apart: please report the file's name"
    )


def is_lora(header: Header) -> bool:
    """Whether a file's tensors have the names of a LoRA's."""
    return any(mark in name for name in header.tensors for mark in _LORA_MARKS)


def looks_like(header: Header) -> str:
    """What a file seems to hold, in words, for messages."""
    names = header.tensors
    if is_lora(header):
        return "it looks like a LoRA (put it into the folder loras and use a LoRA loader)"
    for test, words in _LOOKS.items():
        if _holds(names, test):
            return words
    sample = ", ".join(list(names)[:3])
    return f"its {len(names)} tensors are named like {sample}" if names else "it holds no tensors"


NOT_RUN = {
    "caption_projection.0.linear.weight": "HiDream",
    "t_embedder1.mlp.0.weight": "HiDream-O1",
    "time_caption_embed.timestep_embedder.linear_1.bias": "OmniGen2",
    "double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight": "Boogu",
    "layers.0.mlp.linear_fc2.weight": "Ernie Image",
    "embed_image_indicator.weight": "Ideogram 4",
    "visual_transformer_blocks.0.cross_attention.key_norm.weight": "Kandinsky 5",
    "txt_in.individual_token_refiner.blocks.0.norm1.weight": "HunyuanImage or HunyuanVideo",
    "double_layers.0.attn.w1q.weight": "AuraFlow",
    "t_block.1.weight": "PixArt",
    "core.pixel_embedder.proj.weight": "PixelDiT",
    "double_blocks.0.attn.img_attn_qkv.weight": "JoyAI Image",
    "blocks.0.cross_attn.norm_k.weight": "Wan",
}
"""Weights that only networks have which Loraloom does not run → what those are called."""

_LOOKS: Mapping[str, str] = {
    **{mark: f"it looks like {name}, which is not run here" for mark, name in NOT_RUN.items()},
    "redux_up.weight": "it looks like a style model (Flux Redux); use StyleModelLoader",
    "vision_model.encoder.layers.0.mlp.fc1.weight": "it looks like a picture encoder; use CLIPVisionLoader",
    "model.layers.0.self_attn.q_proj.weight": "it looks like a language model of another kind",
    "input_hint_block.0.weight": "it looks like a ControlNet",
    "control_model.input_hint_block.0.weight": "it looks like a ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "it looks like a ControlNet in diffusers' layout",
    "first_stage_model.decoder.conv_in.weight": "it holds an autoencoder (VAE) but no diffusion network",
    "decoder.conv_in.weight": "it looks like an autoencoder (VAE); use a VAE loader",
    "text_model.encoder.layers.0.mlp.fc1.weight": "it looks like a CLIP text encoder; use a CLIP loader",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "it looks like a T5 text encoder; use a CLIP loader",
    "emb_params": "it looks like a textual-inversion embedding; name it in the prompt as embedding:NAME",
    "string_to_param": "it looks like a textual-inversion embedding",
    "double_blocks.0.img_attn.qkv.weight": "it looks like a variant of Flux.1",
    "transformer_blocks.0.attn.add_q_proj.weight": "it looks like a transformer in diffusers' layout",
    "joint_blocks.0.x_block.attn.qkv.weight": "it looks like Stable Diffusion 3",
    "down_blocks.0.resnets.0.conv1.weight": "it looks like a UNet in diffusers' layout",
}


def _holds(names: Iterable[str], tail: str) -> bool:
    return any(name == tail or name.endswith("." + tail) for name in names)
