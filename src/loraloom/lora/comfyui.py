"""Which names ComfyUI v0.3.64 applies: what `compat="comfyui"` leaves out as it does.

Facts measured on that version: it reads a fixed product of prefixes and names, fewer than this package does,
and goes on without what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraloom.lora.component import Component, ComponentName
from loraloom.lora.module_names import encoders_in
from loraloom.models.encoder import encoder_kinds
from loraloom.models.recognition import family_named

SKIPPED = "ComfyUI v0.3.64 does not load it (compat comfyui)"

_TEXT_MODULES = (
    "mlp.fc1", "mlp.fc2", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj",
)  # fmt: skip


def known_names(kind: ComponentName, component: Component) -> frozenset[str]:
    """Every module name by which it finds a weight of this component."""
    if kind == "clip":
        return frozenset(_text_names(component))
    return frozenset((*_native_names(component), *_family_names(component)))


def _native_names(component: Component) -> Iterator[str]:
    for weight in component.shapes:
        path = weight.removesuffix(".weight")
        yield "diffusion_model." + path
        if path != weight:
            yield "lora_unet_" + path.replace(".", "_")


def _family_names(component: Component) -> Iterator[str]:
    family = family_named(component.family)
    if family is not None:
        for path, target in component.names.items():
            if target.weight in component.shapes:
                yield from family.lora.comfyui(path)


def _text_names(component: Component) -> Iterator[str]:
    kinds = encoder_kinds()
    present = encoders_in(path.split(".", 1)[0] for path in component.names)
    for path, target in component.names.items():
        if target.weight not in component.shapes or not target.weight.endswith(".weight"):
            continue
        encoder, rest = path.split(".", 1)
        yield "text_encoders." + target.weight.removesuffix(".weight")
        if rest.endswith(_TEXT_MODULES) and kinds[encoder].lora.root == "text_model.":
            yield from _clip_names(rest, is_second=present.index(encoder) == 1)
        elif rest.startswith("encoder."):
            for number in {present.index(encoder) + 1, kinds[encoder].lora.number}:
                yield f"lora_te{number}_" + rest.replace(".", "_")
        elif len(present) == 1 and rest.startswith(root := kinds[encoder].lora.root):
            yield "lora_te_" + rest.removeprefix(root).replace(".", "_")


def _clip_names(path: str, *, is_second: bool) -> Iterator[str]:
    flat = path.replace(".", "_")
    yield ("text_encoder_2." if is_second else "text_encoder.") + path
    yield ("lora_te2_" if is_second else "lora_te_") + flat
    if not is_second:
        yield "lora_te1_" + flat
