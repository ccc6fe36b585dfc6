"""Components as model families supply them, made from the figures measured on ComfyUI v0.3.64."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from loraloom.lora.component import Component, ComponentName
from loraloom.weights.patch import Target

PARITY = Path(__file__).parents[1] / "data" / "parity"
NATIVE = "diffusion_model."

MEASURED = ("sd15", "sdxl", "flux")


@cache
def measured(name: str) -> dict[str, Any]:
    """One of the measured tables: "sd15", "clip_sdxl", …"""
    return json.loads(gzip.decompress((PARITY / f"lora_keys_{name}.json.gz").read_bytes()))


def target_of(value: Any) -> Target:
    """ComfyUI's entry → target: a weight, or [weight, (dimension, first row, rows), function]."""
    if isinstance(value, str):
        return Target(value.removeprefix(NATIVE))
    rows = None if value[1] is None else (value[1][1], value[1][1] + value[1][2])
    return Target(value[0].removeprefix(NATIVE), rows, len(value) > 2)


@cache
def model(name: str) -> Component:
    """The diffusion network: native shapes, and diffusers' module paths as ComfyUI knows them."""
    table = measured(name)
    prefix = "transformer." if name == "flux" else "unet."
    names = {
        _today(key.removeprefix(prefix)): target_of(value)
        for key, value in table["lora_keys"].items()
        if key.startswith(prefix)
    }
    names |= {
        key.removeprefix(NATIVE): target_of(value)
        for key, value in table["lora_keys"].items()
        if key.endswith(".linear1_qkv")
    }
    shapes = {
        key.removeprefix(NATIVE): tuple(shape)
        for key, shape in table["weights"].items()
        if key.startswith(NATIVE)
    }
    return Component(name, shapes, names)


def _today(path: str) -> str:
    """ComfyUI lists a UNet's attention projections through diffusers' old processors only."""
    if ".processor." not in path:
        return path
    return path.replace(".processor.", ".").removesuffix(".0") + (".0" if path.endswith("to_out") else "")


@cache
def clip(name: str) -> Component:
    """The text encoders, natively "clip_l.transformer.…", in their real shapes."""
    prefix = "text_encoders."
    shapes: dict[str, tuple[int, ...]] = {}
    names: dict[str, Target] = {}
    for key, weight in measured(f"clip_{name}")["lora_keys"].items():
        if key.startswith(prefix):
            path = key.removeprefix(prefix).replace(".transformer.", ".", 1)
            names[path] = Target(weight)
            shapes[weight] = _text_shape(path)
            shapes[weight.removesuffix("weight") + "bias"] = _text_shape(path)[:1]
    return Component(name, shapes, names)


def _text_shape(path: str) -> tuple[int, int]:
    width, inner = {"clip_l": (768, 3072), "clip_g": (1280, 5120), "t5xxl": (4096, 10240)}[path.split(".")[0]]
    if path.endswith(("fc1", "wi_0", "wi_1")):
        return (inner, width)
    return (width, inner) if path.endswith(("fc2", "wo")) else (width, width)


def components(name: str) -> dict[ComponentName, Component]:
    return {"model": model(name), "clip": clip(name)}
