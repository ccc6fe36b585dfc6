"""Tensors of plain LoRA files, as trainers spell them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from headers.layouts import Shape, Shapes, Tensors

KOHYA = (".lora_down.weight", ".lora_up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")
PEFT_NAMED = (".lora_A.default.weight", ".lora_B.default.weight")


def modules(shapes: Mapping[str, Shape], chosen: Callable[[str], bool] = lambda name: True) -> Shapes:
    """Modules with a weight of two dimensions or more → the weight's shape."""
    weights = {
        name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")
    }
    return {name: shape for name, shape in weights.items() if len(shape) > 1 and chosen(name)}


def lora(
    weights: Mapping[str, Shape], rank: int, dtype: str, suffixes: tuple[str, str], alpha: str = ""
) -> Tensors:
    """A plain LoRA for modules as the file spells them. alpha: data type of its number, where it has one."""
    found: Tensors = {}
    for name, shape in weights.items():
        found[name + suffixes[0]] = (dtype, (rank, *shape[1:]))
        found[name + suffixes[1]] = (dtype, (shape[0], rank, *(1 for _ in shape[2:])))
        if alpha:
            found[f"{name}.alpha"] = (alpha, ())
    return found


def kohya_names(weights: Mapping[str, Shape], prefix: str = "lora_unet_") -> Shapes:
    return {prefix + name.replace(".", "_"): shape for name, shape in weights.items()}


def split_rows(shapes: Mapping[str, Shape], parts: Mapping[str, Iterable[str]]) -> Shapes:
    """Fused weights apart: end of a name → ends of the equal parts of its rows."""
    found: Shapes = {}
    for name, shape in shapes.items():
        end = next((end for end in parts if name.endswith(end)), None)
        if end is None:
            found[name] = shape
            continue
        ends = tuple(parts[end])
        found |= {name.removesuffix(end) + part: (shape[0] // len(ends), *shape[1:]) for part in ends}
    return found
