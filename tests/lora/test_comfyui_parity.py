"""Merged weights against the figures of ComfyUI v0.3.64 (compat="comfyui"), for files of every format."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraloom.lora.file import read_lora
from loraloom.lora.load import LoadedLora, load_lora

from . import tables

ONE_MODULE = tables.PARITY / "lora_sd15_one_module.safetensors"


@cache
def _small() -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(ONE_MODULE, "pt") as file:
        figures: dict[str, Any] = json.loads(file.metadata()["figures"])
    return load_file(ONE_MODULE), figures


def _merged(lora: LoadedLora, name: str, weight: Tensor, strength: float) -> Tensor:
    source = lora.clip if name.startswith(("clip_", "t5")) else lora.model
    changed = weight.clone()
    for patch in source.patches().get(name, ()):
        rows = slice(*(patch.rows or (0, len(weight))))
        changed[rows] = patch.apply(changed[rows].clone(), strength)
    return changed - weight


def _assert_figures(delta: Tensor, norm: float, corner: Tensor | None) -> None:
    # ComfyUI's norms were summed in float32, whose error depends on the order of the sum
    assert float(delta.norm()) == pytest.approx(norm, rel=1e-4, abs=1e-12)
    if corner is not None:
        found = (delta.flatten(1) if delta.dim() > 1 else delta[:, None])[:48, :48]
        assert float((found - corner).norm()) <= 1e-5 * float(corner.norm())


@pytest.mark.parametrize("key", list(_small()[1]))
def test_one_module_of_each_format(key: str, tmp_path: Path) -> None:
    tensors, figures = _small()
    name, strength, weight = key.split("|")
    held = {k.split("|")[1]: v for k, v in tensors.items() if k.startswith(name)}
    save_file(held, tmp_path / name)
    lora = load_lora(read_lora(tmp_path / name), tables.components("sd15"), compat="comfyui")
    base = tensors[f"base|{weight}"].float()
    delta = _merged(lora, weight.removeprefix(tables.NATIVE), base, float(strength))
    _assert_figures(delta, figures[key]["norm"], tensors.get(f"corner|{key}"))


def _files() -> Iterator[tuple[str, str]]:
    for family in ("sd15", "flux"):
        for key in _figures(family):
            yield family, key


@cache
def _figures(family: str) -> dict[str, Any]:
    path = tables.PARITY / f"lora_{family}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["files"]


def _weights(models: Path, family: str) -> Callable[[str], Tensor]:
    if family == "flux":
        flux = safe_open(models / "unet/Flux/flux1-dev-fp8.safetensors", "pt")
        return lambda name: flux.get_tensor(name).float()
    checkpoint = safe_open(models / "checkpoints/v1-5-pruned-emaonly-fp16.safetensors", "pt")

    def weight(name: str) -> Tensor:
        if name.startswith("clip_l."):
            return checkpoint.get_tensor("cond_stage_model." + name.removeprefix("clip_l.")).float()
        return checkpoint.get_tensor("model.diffusion_model." + name).float()

    return weight


@pytest.mark.heavy
@pytest.mark.parametrize(("family", "key"), list(_files()))
def test_every_module_of_every_file(family: str, key: str) -> None:
    root = os.environ.get("LORALOOM_PARITY_MODELS")
    if root is None:
        pytest.skip("LORALOOM_PARITY_MODELS names no folder with the full-size files")
    figures = json.loads(gzip.decompress((tables.PARITY / f"lora_{family}.json.gz").read_bytes()))["files"][
        key
    ]
    corners = np.load(tables.PARITY / f"lora_{family}.npz")
    name, strength = key.split("|")
    path = next(Path(root).glob(f"loras/*/{name}"))
    lora = load_lora(read_lora(path), tables.components(family), compat="comfyui")
    base = _weights(Path(root), family)
    for weight, norm in figures["delta_norm"].items():
        native = weight.removeprefix(tables.NATIVE)
        delta = _merged(lora, native, base(native), float(strength))
        corner = f"{key}|{weight}"
        _assert_figures(delta, norm, torch.from_numpy(corners[corner]) if corner in corners else None)
    changed = {*lora.model.patches(), *lora.clip.patches()}
    measured = {weight.removeprefix(tables.NATIVE) for weight in figures["delta_norm"]}
    assert changed <= measured, "ComfyUI changed no others"
