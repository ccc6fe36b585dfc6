"""The names by which LoRA files call weights: native names and aliases times prefixes, computed.

Flat names are dotted names with "_" for "." (kohya's trainers); "processor" paths are those of diffusers'
old attention processors. What a trainer adds behind a name (".lora_up.weight" …) is `lora`'s concern.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from loraloom.weights.patch import NameTable, Target

if TYPE_CHECKING:
    from loraloom.models.family import ModelFamily, Shapes

NATIVE_PREFIX = "diffusion_model."
NATIVE_FLAT_PREFIX = "lora_unet_"
TEXT_PREFIX = "text_encoders."

_TEXT_PREFIXES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "clip_l": (("text_encoder.",), ("lora_te_", "lora_te1_")),
    "clip_h": (("text_encoder.",), ("lora_te_", "lora_te1_")),
    "clip_g": (("text_encoder_2.",), ("lora_te2_",)),
    "t5xxl": (("text_encoder_2.", "text_encoder_3."), ("lora_te2_", "lora_te3_")),
}
"""Role → prefixes of dotted and of flat names."""

_ONLY_CLIP_G = (
    ("text_encoder.", "text_encoder_2."),
    ("lora_te_", "lora_te1_", "lora_te2_", "lora_prior_te_"),
)


def module_of(native: str) -> str:
    """The module path of a native weight; biases and other parameters keep their own name."""
    return native.removesuffix(".weight")


def flat(path: str) -> str:
    return path.replace(".", "_")


def diffusion_names(family: ModelFamily, shapes: Shapes) -> NameTable:
    """Names of a diffusion network's weights: the first that claims a name keeps it."""
    names: dict[str, Target] = {}
    for native in shapes:
        module, target = module_of(native), Target(native)
        names[NATIVE_PREFIX + module] = target
        if module != native:
            names[NATIVE_FLAT_PREFIX + flat(module)] = target
    for name, target in family.other_names(shapes):
        names.setdefault(name, target)
    for path, target in family.lora_aliases(shapes):
        for prefix in family.flat_prefixes:
            names.setdefault(prefix + flat(path), target)
        for spelling in _dotted_spellings(path):
            for prefix in family.dotted_prefixes:
                names.setdefault(prefix + spelling, target)
    return names


def text_names(parts: Mapping[str, Shapes]) -> NameTable:
    """Names of the weights of text encoders, by role; native names carry "ROLE.transformer."."""
    names: dict[str, Target] = {}
    for role, shapes in parts.items():
        dotted, flats = _TEXT_PREFIXES.get(role, ((), ()))
        if role == "clip_g" and not parts.keys() & {"clip_l", "clip_h"}:
            dotted, flats = _ONLY_CLIP_G
        for native in shapes:
            module, target = module_of(native), Target(native)
            path = module.removeprefix(f"{role}.transformer.")
            names.setdefault(TEXT_PREFIX + module, target)
            for prefix in dotted:
                names.setdefault(prefix + path, target)
            if module != native:
                for prefix in flats:
                    names.setdefault(prefix + flat(path), target)
    return names


def text_aliases(parts: Mapping[str, Shapes]) -> NameTable:
    """Module paths of text encoders by role, "clip_l.text_model.…", → targets."""
    return {
        role + "." + module_of(native).removeprefix(f"{role}.transformer."): Target(native)
        for role, shapes in parts.items()
        for native in shapes
    }


def _dotted_spellings(path: str) -> Iterator[str]:
    """The path itself and, for attention projections, the path through diffusers' old processors."""
    yield path
    if ".to_" in path:
        yield path.replace(".to_", ".processor.to_").removesuffix(".0")
