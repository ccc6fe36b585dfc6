"""Which weights of a safetensors file are quantised, and how: from its marks, names, types and shapes.

A layer says its format in a tensor "NAME.comfy_quant" (JSON), in the file's metadata
("_quantization_metadata"), or by the older tensor "scaled_fp8" with "NAME.scale_weight". Everything that
belongs to a weight's storage is taken from the list of tensors, so that only weights are left; what is not
known is refused by name before anything is loaded.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import cast

from loraloom.errors import ModelFileError
from loraloom.weights.formats import (
    FP8,
    Fetch,
    Layer,
    Packing,
    Settings,
    TensorInfo,
    formats,
    formats_said,
)

MARK = "comfy_quant"
METADATA = "_quantization_metadata"
OLD_MARK = "scaled_fp8"
FULL_PRECISION = "full_precision_matrix_mult"
MAX_MARK = 1 << 16

_SIDE = (
    "weight_scale",
    "scale_weight",
    "weight_scale_2",
    "input_scale",
    "scale_input",
    "pre_quant_scale",
    "weight_s_rel",
    "weight_s_channel",
    "weight_codebook",
    "weight_correction",
    MARK,
)
"""What stands behind "NAME." in tensors that belong to the storage of "NAME.weight"."""

_SCALE_NAMES = ("weight_scale", "scale_weight")
_NARROW = frozenset({"I8", "U8", "F4", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2"})


def weights_of(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], fetch: Fetch
) -> dict[str, TensorInfo]:
    """The tensors of a file with its quantised weights described, and what describes them left out.

    fetch: reads a small tensor. ModelFileError names the layer and what is wrong, or the format that is not
    known."""
    for format in formats().values():
        if reason := format.refuses(tensors):
            raise ModelFileError(f"{format.title}: {reason}")
    layers = _layers(tensors)
    said = _old_marks(tensors, layers) | _in_metadata(tensors, metadata) | _marks(layers, fetch)
    found = {name: info for name, info in tensors.items() if not _is_aside(name)}
    for layer in {**layers, **said}:
        parts = layers.get(layer) or {"weight": tensors[f"{layer}.weight"]}
        if layer in said or _scaled(parts):
            found[f"{layer}.weight"] = _described(
                Layer(layer, parts, said[layer] if layer in said else _guessed(parts))
            )
    return {name: info if info.packing else _unmarked(name, info) for name, info in found.items()}


def _is_aside(name: str) -> bool:
    return name.rpartition(".")[2] in (*_SIDE, OLD_MARK)


def _layers(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Layers that have anything of `_SIDE`, with their weights."""
    found: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in tensors.items():
        layer, _, last = name.rpartition(".")
        if last in _SIDE:
            found[layer][last] = info
    for layer, parts in found.items():
        weight = tensors.get(f"{layer}.weight")
        if weight is not None:
            parts["weight"] = weight
    return dict(found)


def _marks(layers: Mapping[str, Mapping[str, TensorInfo]], fetch: Fetch) -> dict[str, Settings]:
    """What the tensors "NAME.comfy_quant" say."""
    found: dict[str, Settings] = {}
    for layer, parts in layers.items():
        mark = parts.get(MARK)
        if mark is not None:
            name = f"{layer}.{MARK}"
            if mark.dtype not in ("U8", "I8") or mark.nbytes > MAX_MARK:
                raise ModelFileError(
                    f"{name} is {mark.dtype} {list(mark.shape)}; a short JSON text was expected"
                )
            found[layer] = _settings(_json(fetch(mark), name), name)
    return found


def _in_metadata(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, Settings]:
    text = metadata.get(METADATA)
    if text is None:
        return {}
    layers = _json(text, METADATA).get("layers")
    if not isinstance(layers, dict):
        raise ModelFileError(f"the file's {METADATA} lists no layers")
    listed = cast(dict[str, object], layers)
    found = {
        layer: _settings(said, f"{METADATA} of {layer}")
        for layer, said in listed.items()
        if f"{layer}.weight" in tensors  # a part of a larger file may keep the whole list
    }
    if listed and not found:
        raise ModelFileError(
            f"the file's {METADATA} speaks of {next(iter(listed))!r} and {len(listed) - 1} more layers, none"
            " of which the file holds"
        )
    return found


def _old_marks(
    tensors: Mapping[str, TensorInfo], layers: Mapping[str, Mapping[str, TensorInfo]]
) -> dict[str, Settings]:
    """What tensors "scaled_fp8" say of the layers below them that have a scale. Two elements mean: multiply
    in full precision."""
    found: dict[str, Settings] = {}
    for name, info in tensors.items():
        prefix, _, last = name.rpartition(".")
        if last != OLD_MARK:
            continue
        said = {"format": FP8.get(info.dtype, "float8_e4m3fn"), FULL_PRECISION: prod(info.shape) == 2}
        below = prefix + "." if prefix else ""
        found |= {
            layer: said for layer, parts in layers.items() if layer.startswith(below) and _scaled(parts)
        }
    return found


def _scaled(parts: Mapping[str, TensorInfo]) -> bool:
    return any(name in parts for name in _SCALE_NAMES)


def _guessed(parts: Mapping[str, TensorInfo]) -> Settings:
    """The format of a weight that has a scale and no mark, by its type."""
    weight = parts.get("weight")
    dtype = "" if weight is None else weight.dtype
    if dtype == "I8":
        return {"format": "int8_tensorwise"}
    if dtype in _NARROW:
        return {"format": f"{dtype} without a mark"}
    return {"format": FP8.get(dtype, "float8_e4m3fn")}


def _settings(said: object, where: str) -> Settings:
    """What a mark says, its "params" beside the rest."""
    if not isinstance(said, dict):
        raise ModelFileError(f"{where} is no JSON object")
    known = cast(dict[str, object], said)
    inner = known.get("params")
    return {**(cast(dict[str, object], inner) if isinstance(inner, dict) else {}), **known}


def _json(text: bytes | str, where: str) -> dict[str, object]:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{where} is no JSON object")
    return cast(dict[str, object], found)


def _described(layer: Layer) -> TensorInfo:
    """A quantised weight, as its format describes it."""
    said = layer.said.get("format")
    format = formats_said().get(said) if isinstance(said, str) else None
    if format is None:
        raise ModelFileError(
            f"the layer {layer.name!r} is stored as {str(said)[:60]!r}, a format that is not read here; known"
            f" are {', '.join(sorted(formats_said()))}"
        )
    try:
        if "num_experts" in layer.said:
            raise ModelFileError("weights of several experts in one tensor are not read here")
        shape, packing = format.describe(layer)
        if 0 in shape:
            raise ModelFileError(f"its weight is empty: shape {list(shape)}")
    except ModelFileError as error:
        raise ModelFileError(f"the layer {layer.name!r} is stored as {said}, but {error}") from None
    weight = layer.tensors["weight"]
    return TensorInfo(weight.dtype, shape, weight.begin, weight.end, packing)


def _unmarked(name: str, info: TensorInfo) -> TensorInfo:
    """A tensor that nothing is said about: plain 8-bit floats are a cast, other narrow weights unreadable."""
    if info.dtype in FP8:
        return replace(info, packing=Packing("fp8", {"weight": info}))
    if info.dtype in _NARROW and len(info.shape) > 1 and name.endswith(".weight"):
        raise ModelFileError(
            f"the weight {name!r} is stored as {info.dtype}, and neither a mark (comfy_quant) nor a scale"
            " says how to read it"
        )
    return info
