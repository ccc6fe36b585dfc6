"""Another rank for a LoRA file, module by module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import InputError, ModelFileError
from loraloom.lora.algebra import SHARED
from loraloom.lora.algebras import Found, recognise
from loraloom.lora.algorithms import lora
from loraloom.lora.alpha import SCALE_KEYS, config_for, peft_configs, scale_of
from loraloom.lora.component import Shape
from loraloom.lora.factored import Factored
from loraloom.lora.file import LoraFile, Module
from loraloom.lora.low_rank import check_size, reduce_product
from loraloom.lora.writing import PRECISIONS, refuse_inputs, refuse_not_finite, stated_scale, write_lora
from loraloom.weights.tensor_file import TensorFile

_ADDED = {role: ending for ending, role in SHARED.items()}
"""Roles that a module may gain → their ending."""


def resize(
    file: LoraFile,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    precision: str = "fp16",
) -> str:
    """Write the LoRA with at most `rank` ranks per module, or as few as keep `energy` of ‖ΔW‖².

    Whatever is no plain LoRA stays as it is. Returns what was kept, in one line. ModelFileError where factors
    make no product.
    """
    check_size(rank, energy)
    if rank is None and energy is None:
        raise InputError("give --rank, --energy, or both")
    refuse_inputs(out, [file.path])
    tensors = TensorFile(file.path)
    written = {key: tensors.read(key) for key in (*file.bundled, *file.unknown, *file.repeated)}
    done = _Resizing(file, PRECISIONS[precision], rank, energy)
    for module in file.modules:
        stored = {role: tensors.read(key) for role, key in module.tensors.items()}
        for role, tensor in done.module(module, stored).items():
            written[module.tensors.get(role) or module.name + _ADDED[role]] = tensor
    if not done.ranks:
        raise InputError(f"{file.path}: holds no plain LoRA modules, and no others have a rank to change")
    metadata = {key: value for key, value in file.metadata.items() if key not in SCALE_KEYS}
    largest = max(done.ranks)
    metadata |= {"ss_network_dim": str(largest), "ss_network_alpha": str(float(largest))}
    write_lora(out, written, metadata)
    share = done.kept / done.total if done.total else 1.0
    line = f"{len(done.ranks)} modules, ranks {min(done.ranks)} to {largest}, {share:.4%} of ‖ΔW‖² kept"
    return line + (f"; {done.untouched} modules of other algebras left as they are" if done.untouched else "")


class _Resizing:
    """The run over the modules of a file, and the account of it."""

    def __init__(self, file: LoraFile, dtype: torch.dtype, rank: int | None, energy: float | None) -> None:
        self._file, self._dtype, self._rank, self._energy = file, dtype, rank, energy
        self._configs, self._scales = peft_configs(file.config, file.metadata), file.scales()
        self.ranks: list[int] = []
        self.untouched = 0
        self.kept = self.total = 0.0

    def module(self, module: Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A module's tensors by role, with another rank where it is a plain LoRA."""
        shapes = self._file.shapes(module)
        found, _ = recognise(shapes)
        changing = next((one for one in found if not one.on_bias), None)
        scale = 1.0 if changing is None else self._scale(module, changing)
        if changing is not None and changing.algebra is lora.ALGEBRA and changing.is_plain:
            shape = lora.ALGEBRA.made_for(shapes)
            if (problem := changing.misfit(changing.pick(shapes), shape)) is not None:
                raise ModelFileError(f"{self._file.path}: {module.name}: {problem}")
            form = lora.ALGEBRA.factored(stored, shape)
            if form.core is None:
                refuse_not_finite(f"{self._file.path}: {module.name}", stored.values(), scale)
                others = [one for one in found if one is not changing]
                return self._reduced(stored, form, shape, scale, others)
        self.untouched += 1
        if changing is None or not stored.keys().isdisjoint(_ADDED):
            return dict(stored)
        return {**stored, **stated_scale(changing, shapes, scale)}

    def _scale(self, module: Module, found: Found) -> float:
        scalars = {role: self._scales[key] for role, key in module.tensors.items() if key in self._scales}
        shapes, config = found.pick(self._file.shapes(module)), config_for(self._configs, module.name)
        return scale_of(found, shapes, scalars, config, comfyui=False).gamma

    def _reduced(
        self, stored: Mapping[str, Tensor], form: Factored, shape: Shape, scale: float, others: list[Found]
    ) -> dict[str, Tensor]:
        """Other factors, which hold γ: it is 1 from now on, for what is scaled beside them too."""
        up = form.up.to(torch.float32) * scale
        smaller = reduce_product(up, form.down, self._rank, self._energy)
        self.kept, self.total = self.kept + smaller.kept, self.total + smaller.total
        self.ranks.append(smaller.rank)
        made = {role: tensor for role, tensor in stored.items() if role not in _ADDED}
        made |= lora.ALGEBRA.of_factors(smaller.factors, shape, self._dtype)
        for other in others:
            if other.algebra.scaled:
                made |= other.algebra.times(other.pick(stored), scale)
        return made
