"""Storage formats: what stands beside weights in int8 and fp8."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from headers.layouts import Shape, Tensors, typed

CONVROT = '{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}'
FP8_MARK = '{"format": "float8_e4m3fn", "full_precision_matrix_mult": false}'
"""What marks "NAME.comfy_quant" say."""


def int8_convrot(shapes: Mapping[str, Shape], chosen: Callable[[str], bool], rest: str = "BF16") -> Tensors:
    """Chosen weights in int8 with a scale a row and a mark of their own."""
    found = typed(rest, shapes)
    for name in _chosen(shapes, chosen):
        found[f"{name}.weight"] = ("I8", shapes[f"{name}.weight"])
        found[f"{name}.weight_scale"] = ("F32", (shapes[f"{name}.weight"][0], 1))
        found[f"{name}.comfy_quant"] = ("U8", (len(CONVROT),))
    return found


def fp8(
    shapes: Mapping[str, Shape],
    chosen: Callable[[str], bool],
    scales: tuple[str, ...] = ("weight_scale", "input_scale"),
    rest: str = "BF16",
) -> Tensors:
    """Chosen weights in fp8, with one scale for the weight and one for what it multiplies."""
    found = typed(rest, shapes)
    for name in _chosen(shapes, chosen):
        found[f"{name}.weight"] = ("F8_E4M3", shapes[f"{name}.weight"])
        found |= {f"{name}.{scale}": ("F32", ()) for scale in scales}
    return found


def fp8_marked(shapes: Mapping[str, Shape], chosen: Callable[[str], bool]) -> Tensors:
    """The same with the weight's scale alone and a mark for each layer."""
    marks: Tensors = {f"{name}.comfy_quant": ("U8", (len(FP8_MARK),)) for name in _chosen(shapes, chosen)}
    return fp8(shapes, chosen, ("weight_scale",)) | marks


def fp8_old(shapes: Mapping[str, Shape], chosen: Callable[[str], bool], rest: str) -> Tensors:
    """The same with the older names and a mark for the whole file."""
    return fp8(shapes, chosen, ("scale_weight", "scale_input"), rest) | {"scaled_fp8": ("F8_E4M3", (0,))}


def _chosen(shapes: Mapping[str, Shape], chosen: Callable[[str], bool]) -> list[str]:
    names = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    return [name for name in names if f"{name}.weight" in shapes and chosen(name)]


def fp8_layers(tensors: Tensors) -> dict[str, str]:
    """The metadata that says which layers are in fp8."""
    names = [name.removesuffix(".weight") for name, (dtype, _) in tensors.items() if dtype == "F8_E4M3"]
    layers = {name: {"format": "float8_e4m3fn"} for name in names}
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def in_float32(tensors: Tensors, chosen: Callable[[str], bool]) -> Tensors:
    """With the chosen of the tensors that are in bfloat16 in float32 instead."""
    return {
        name: ("F32", shape) if dtype == "BF16" and chosen(name) else (dtype, shape)
        for name, (dtype, shape) in tensors.items()
    }
