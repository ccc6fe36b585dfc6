"""Another rank for a LoRA file, module by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.algebras import Found, recognise
from loraloom.lora.alpha import SCALE_KEYS, PeftConfig, config_for, peft_configs, scale_of
from loraloom.lora.file import LoraFile, Module
from loraloom.lora.low_rank import LowRankForm, check_size, reduce_product
from loraloom.lora.writing import (
    PRECISIONS,
    refuse_inputs,
    refuse_not_finite,
    stated_scale,
    write_lora,
)
from loraloom.weights.tensor_file import TensorFile


def resize(
    file: LoraFile,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    precision: str = "fp16",
) -> str:
    """Write the LoRA with at most `rank` ranks per module, or as few as keep `energy` of ‖ΔW‖².

    Whatever is no plain LoRA stays as it is. Returns what was kept, in one line.
    """
    check_size(rank, energy)
    if rank is None and energy is None:
        raise InputError("give --rank, --energy, or both")
    refuse_inputs(out, [file.path])
    tensors = TensorFile(file.path)
    configs = peft_configs(file.config, file.metadata)
    written = {key: tensors.read(key) for key in (*file.bundled, *file.unknown, *file.repeated)}
    kept = total = 0.0
    ranks: list[int] = []
    untouched = 0
    for module in file.modules:
        stored = {role: tensors.read(key) for role, key in module.tensors.items()}
        found, scale = _algebra(file, module, configs)
        if found is not None and found.kind == "lora" and not _KEEP & stored.keys() and found.part is None:
            refuse_not_finite(f"{file.path}: {module.name}", stored.values(), scale)
            form = _reduced(stored, scale, rank, energy)
            kept, total = kept + form.kept, total + form.total
            ranks.append(form.rank)
            stored = _with_form(stored, form, scale, PRECISIONS[precision])
        else:
            untouched += 1
            if found is not None and not {"alpha", "gamma"} & stored.keys():
                stored |= stated_scale(found, file.shapes(module), scale)
        for role, tensor in stored.items():
            written[module.tensors.get(role) or f"{module.name}.{_ADDED[role]}"] = tensor
    if not ranks:
        raise InputError(f"{file.path}: holds no plain LoRA modules, and no others have a rank to change")
    metadata = {key: value for key, value in file.metadata.items() if key not in SCALE_KEYS}
    metadata |= {"ss_network_dim": str(max(ranks)), "ss_network_alpha": str(float(max(ranks)))}
    write_lora(out, written, metadata)
    share = kept / total if total else 1.0
    line = f"{len(ranks)} modules, ranks {min(ranks)} to {max(ranks)}, "
    line += f"{share:.4%} of ‖ΔW‖² kept"
    return line + (f"; {untouched} modules of other algebras left as they are" if untouched else "")


_KEEP = frozenset({"mid", "dora", "magnitude"})
"""Roles beside which factors are more than their product."""

_ADDED = {"alpha": "alpha", "gamma": "scale"}
"""Roles that a module may gain → their suffix."""


def _algebra(file: LoraFile, module: Module, configs: Sequence[PeftConfig]) -> tuple[Found | None, float]:
    """What changes the module's weight, and γ."""
    shapes = file.shapes(module)
    found = next((one for one in recognise(shapes)[0] if not one.on_bias), None)
    if found is None:
        return None, 1.0
    values = file.scalars([key for role, key in module.tensors.items() if role in ("alpha", "gamma")])
    scalars = {role: values[key] for role, key in module.tensors.items() if key in values}
    used = {role.split(".")[0]: shapes[role] for role in found.roles}
    return found, scale_of(found, used, scalars, config_for(configs, module.name), comfyui=False).gamma


def _reduced(
    stored: Mapping[str, Tensor], gamma: float, rank: int | None, energy: float | None
) -> LowRankForm:
    up, down = (stored[role].to(torch.float32).flatten(1) for role in ("up", "down"))
    return reduce_product(up * gamma, down, rank, energy)


def _with_form(
    stored: Mapping[str, Tensor], form: LowRankForm, gamma: float, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A module's tensors with other factors, which hold γ: alpha is the rank now."""
    made = {role: tensor for role, tensor in stored.items() if role != "gamma"}
    made["up"] = form.up.reshape(-1, form.rank, *stored["up"].shape[2:]).to(dtype)
    made["down"] = form.down.reshape(form.rank, *stored["down"].shape[1:]).to(dtype)
    made["alpha"] = torch.tensor(float(form.rank))
    if "up_bias" in stored:
        made["up_bias"] = stored["up_bias"].to(torch.float32) * gamma
    return made
