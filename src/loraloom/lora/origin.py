"""What a LoRA file is for, who wrote it and how: told from names, shapes and metadata. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from loraloom.lora.component import Component
from loraloom.lora.file import LoraFile, Module
from loraloom.lora.module_names import take_apart
from loraloom.models.family import LoraSign
from loraloom.models.recognition import families


@dataclass(frozen=True, slots=True)
class OtherModel:
    """A model that Loraloom does not run, whose LoRAs it knows by sight. said: as `Family.said`."""

    name: str
    title: str
    signs: tuple[LoraSign, ...] = ()
    said: tuple[str, ...] = ()


OTHERS: tuple[OtherModel, ...] = (
    OtherModel("wan", "Wan", (LoraSign(r"^blocks_\d+_(self_attn|cross_attn|ffn)"),), ("wan",)),
    OtherModel(
        "hunyuan_video",
        "HunyuanVideo",
        (LoraSign(r"img_mlp_fc1|img_mod_linear|individual_token_refiner", weight=9.0),),
        ("hunyuan",),
    ),
    OtherModel("hidream", "HiDream", (LoraSign(r"(double|single)_stream_blocks", weight=3.0),), ("hidream",)),
)

TEXT, TEXT_TITLE = "text", "a text encoder"
"""What a file is for that changes text encoders alone."""


@cache
def _known() -> tuple[tuple[str, str, tuple[LoraSign, ...], tuple[str, ...]], ...]:
    """Name, title, signs and said names of everything that a LoRA may be for."""
    ours = [(family.name, family.title, family.lora.signs, family.said) for family in families()]
    names = {name for name, *_ in ours}
    return (*ours, *((o.name, o.title, o.signs, o.said) for o in OTHERS if o.name not in names))


def base_of(file: LoraFile) -> str | None:
    """The family that a file was made for: by its names and shapes, by its metadata where those are silent,
    or speak for several alike."""
    votes: dict[str, float] = defaultdict(float)
    is_text = False
    for module in file.modules:
        name = take_apart(module.name)
        if name.component == "clip":
            is_text = True
            continue
        path, widths = name.path.replace(".", "_"), _widths(file, module)
        for family, _, signs, _ in _known():
            votes[family] += sum(_speaks(sign, path, widths) for sign in signs)
    said = said_base(file.metadata)
    most = max(votes.values(), default=0)
    if most:
        best = [family for family, count in votes.items() if count == most]
        return best[0] if len(best) == 1 else said if said in best else None
    return said or (TEXT if is_text else None)


def _speaks(sign: LoraSign, path: str, widths: frozenset[int]) -> float:
    fits = not sign.widths or not widths.isdisjoint(sign.widths)
    return sign.weight if fits and re.search(sign.path, path) else 0.0


def _widths(file: LoraFile, module: Module) -> frozenset[int]:
    """Columns of the matrices that a module's change is made of: the weight's among them."""
    shapes = (file.header.tensors[key].shape for key in module.tensors.values())
    return frozenset(shape[-1] for shape in shapes if len(shape) > 1)


def said_base(metadata: Mapping[str, str]) -> str | None:
    """The family that the metadata names: the longest of the names that are part of it."""
    for key in ("modelspec.architecture", "ss_base_model_version", "ss_architecture"):
        text = metadata.get(key, "").lower()
        found = [(len(part), name) for name, _, _, said in _known() for part in said if part in text]
        if found:
            return max(found)[1]
    return None


def title_of(family: str | None) -> str:
    titles = {name: title for name, title, *_ in _known()} | {TEXT: TEXT_TITLE}
    return titles.get(family, family) if family else "an unknown model"


def size_of(family: str | None, shapes: Iterable[tuple[int, ...]]) -> str:
    """What the published model of a family is called whose width most of these matrices have; "" where it is
    not told."""
    known = next((one.sizes for one in families() if one.name == family), {})
    sides = Counter(side for shape in shapes if len(shape) > 1 for side in shape if side in known)
    return known[sides.most_common(1)[0][0]] if sides else ""


def made_for(file: LoraFile, family: str | None) -> str:
    """The model that a file for this family was made for, in words, with its size where that is told."""
    shapes = (info.shape for info in file.header.tensors.values())
    return f"{title_of(family)} {size_of(family, shapes)}".strip()


def in_words(component: Component) -> str:
    """The same of a loaded model."""
    return f"{title_of(component.family)} {size_of(component.family, component.shapes.values())}".strip()


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
