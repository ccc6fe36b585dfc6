"""Narrow LoRA files with the very values that the figures were measured on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.narrow_models import Weights, normals

RANK, ALPHA, REACH = 4, 2.0, 0.3

Modules = list[tuple[str, tuple[int, int]]]
"""Name of a module and (outputs, inputs) of its weight."""


def linears(made: Weights, *parts: str) -> Modules:
    """The linear layers whose names hold one of these parts."""
    return [
        (name.removesuffix(".weight"), (shape[0], shape[1]))
        for name, (shape, _, _) in made.known.items()
        if name.endswith(".weight") and len(shape) == 2 and any(part in name for part in parts)
    ]


def flat(prefix: str, modules: Modules) -> Modules:
    return [(prefix + name.replace(".", "_"), shape) for name, shape in modules]


def behind(prefix: str, modules: Modules) -> Modules:
    return [(prefix + name, shape) for name, shape in modules]


def write(path: Path, family: str, kind: str, modules: Iterable[tuple[str, tuple[int, int]]]) -> Path:
    """kind: "kohya", "kohya_split" (with alphas), "peft", "aitoolkit" (PEFT's endings), "lokr"; it is part of
    the seed."""
    tag = f"lora.{family}.{kind}"
    tensors: dict[str, Tensor] = {}

    def put(name: str, shape: tuple[int, ...], deviation: float) -> None:
        values = normals(tag, name, shape) * np.float32(deviation)
        tensors[name] = torch.from_numpy(values).to(torch.bfloat16)

    for name, (outputs, inputs) in modules:
        if kind.startswith("kohya"):
            put(f"{name}.lora_up.weight", (outputs, RANK), REACH / (ALPHA / RANK * math.sqrt(RANK)))
            put(f"{name}.lora_down.weight", (RANK, inputs), 1 / math.sqrt(inputs))
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA).to(torch.bfloat16)
        elif kind == "lokr":
            put(f"{name}.lokr_w1", (8, 8), 1.0)
            put(f"{name}.lokr_w2", (outputs // 8, inputs // 8), REACH / math.sqrt(inputs))
            tensors[f"{name}.alpha"] = torch.tensor(1.0).to(torch.bfloat16)
        else:
            put(f"{name}.lora_B.weight", (outputs, RANK), REACH / math.sqrt(RANK))
            put(f"{name}.lora_A.weight", (RANK, inputs), 1 / math.sqrt(inputs))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    return path
