"""Every algorithm in every dialect for every family: the oracle's change, and every tensor accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import LoadedLora, load_lora
from loraloom.weights.patch import Target

from . import oracles, tables

PLACES: Mapping[str, tuple[str, ...]] = {
    "sd15": ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0", "conv_in"),
    "sdxl": ("time_embedding.linear_1", "conv_in"),
    "flux": ("x_embedder", "proj_out"),
}
"""Family → diffusers module paths: small real ones, linear and convolution where the family has any."""

SUFFIXES: Mapping[str, Mapping[str, str]] = {
    "kohya": {},
    "peft": {
        "lora_up.weight": "lora_B.weight",
        "lora_down.weight": "lora_A.weight",
        "oft_R.weight": "oft_R.default.weight",
        "boft_R": "boft_R.default",
    },
    "adapter": {"lora_up.weight": "lora_B.default.weight", "lora_down.weight": "lora_A.default.weight"},
    "old": {"lora_up.weight": "lora.up.weight", "lora_down.weight": "lora.down.weight"},
}

DIALECTS: Mapping[str, tuple[str, str, str]] = {
    "kohya": ("lora_unet_", "flat", "kohya"),
    "native": ("diffusion_model.", "dotted", "kohya"),
    "native-peft": ("diffusion_model.", "dotted", "peft"),
    "diffusers": ("{part}.", "dotted", "peft"),
    "diffusers-0.25": ("{part}.", "dotted", "old"),
    "peft": ("base_model.model.", "dotted", "peft"),
    "peft-adapter": ("{part}.base_model.model.", "dotted", "adapter"),
    "lycoris": ("lycoris_", "flat", "kohya"),
    "onetrainer": ("lora_{part}.", "dotted", "kohya"),
    "onetrainer-mixture": ("lora_{part}_", "flat", "kohya"),
    "bare": ("", "dotted", "peft"),
}
"""Dialect → prefix, path style, suffix style."""

NATIVE = {"native", "native-peft"}


def _spell(family: str, dialect: str, path: str) -> str:
    prefix, style, _ = DIALECTS[dialect]
    if dialect in NATIVE or (dialect == "kohya" and family != "sd15"):
        path = tables.model(family).names[path].weight.removesuffix(".weight")
    prefix = prefix.format(part="transformer" if family == "flux" else "unet")
    return prefix + (path if style == "dotted" else path.replace(".", "_"))


def _shape(family: str, path: str) -> tuple[int, ...]:
    component = tables.model(family)
    return component.shape_of(component.names[path])


def _write(folder: Path, family: str, dialect: str, algorithm: str) -> Path:
    suffixes = SUFFIXES[DIALECTS[dialect][2]]
    tensors: dict[str, Tensor] = {}
    for path in PLACES[family]:
        module = _spell(family, dialect, path)
        for suffix, value in oracles.trained(algorithm, _shape(family, path)).tensors.items():
            tensors[f"{module}.{suffixes.get(suffix, suffix)}"] = value.contiguous()
    where = folder / "lora.safetensors"
    save_file(tensors, where)
    return where


def changes(
    lora: LoadedLora, component: Component, target: Target, weight: Tensor, strength: float
) -> Tensor:
    """ΔW of all patches on a target, applied in order to a copy of its weight."""
    changed = weight.clone()
    for patch in lora.model.patches()[target.weight]:
        assert patch.rows == target.rows
        changed = patch.apply(changed, strength)
    assert tuple(changed.shape) == component.shape_of(target)
    return changed - weight


def _cells() -> Iterator[tuple[str, str, str]]:
    for family in PLACES:
        for dialect in DIALECTS:
            for algorithm in oracles.ALGORITHMS:
                yield family, dialect, algorithm


@pytest.mark.parametrize(("family", "dialect", "algorithm"), list(_cells()))
def test_cell(family: str, dialect: str, algorithm: str, tmp_path: Path) -> None:
    component = tables.model(family)
    loaded = load_lora(read_lora(_write(tmp_path, family, dialect, algorithm)), {"model": component})
    receipt = loaded.receipt
    assert receipt.complete
    assert (receipt.matched, receipt.total) == (2, 2)
    for path in PLACES[family]:
        oracle = oracles.trained(algorithm, _shape(family, path))
        for strength in (1.0, -0.6):
            found = changes(loaded, component, component.names[path], oracle.weight, strength)
            expected = oracle.change(strength)
            scale = float(expected.abs().max())
            assert scale > 1e-4, "an oracle that changes nothing tests nothing"
            rounding = 4e-7 * float(oracle.weight.abs().max())  # of W + ΔW in float32
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale + rounding)
