"""One LoRA from several: factors side by side, which is exact, or reduced by SVD."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.algebra import Ingredients
from loraloom.lora.component import Component, ComponentName, Shape, owner_of
from loraloom.lora.factored import Factored, side_by_side
from loraloom.lora.file import LoraFile, read_lora
from loraloom.lora.low_rank import LowRankForm, check_size, reduce_matrix, reduce_product
from loraloom.lora.place import BOOKKEEPING, BUNDLED, Piece, Placement, place
from loraloom.lora.receipt import shorten
from loraloom.lora.writing import (
    PRECISIONS,
    Speller,
    difference_tensors,
    factor_tensors,
    refuse_inputs,
    refuse_not_finite,
    write_lora,
)
from loraloom.weights.patch import Target
from loraloom.weights.tensor_file import TensorFile


@dataclass(frozen=True, slots=True)
class Part:
    """A LoRA and the strength with which it enters."""

    file: LoraFile
    strength: float


def read_part(text: str) -> Part:
    """`FILE` or `FILE:STRENGTH`; InputError where the strength is no number."""
    found = re.fullmatch(r"(.+?):(-?[0-9.]+(?:e-?[0-9]+)?)", text)
    if found and not Path(text).exists():
        try:
            return Part(read_lora(found[1]), float(found[2]))
        except ValueError:
            raise InputError(f"{text}: {found[2]!r} is no strength; expected FILE:0.8") from None
    return Part(read_lora(text), 1.0)


Place: TypeAlias = "tuple[ComponentName, Target]"


def merge(
    parts: Sequence[Part],
    base: Mapping[ComponentName, Component],
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    precision: str = "fp32",
) -> str:
    """Write Σ strength · LoRA as one file, under kohya's names. Returns what it holds, in one line.

    Without rank and energy nothing is lost: factors are put side by side, changes without small factors are
    added up whole. InputError where a file holds anything that one LoRA for every base cannot say.
    """
    check_size(rank, energy)
    if not parts:
        raise InputError("nothing to merge: give two LoRA files or more")
    refuse_inputs(out, (part.file.path for part in parts))
    gathered = _gather(parts, base)
    speller, fallback = Speller(base, "kohya"), Speller(base, "diffusers")
    writing = _Writing(PRECISIONS[precision], rank, energy)
    for (component, target), changes in gathered.items():
        owner = replace(target, weight=owner_of(target.weight))
        name = speller.name(component, owner) or fallback.name(component, owner)
        if name is None:
            raise InputError(f"{target.weight}: there is no name for these rows of it in a LoRA file")
        if target.weight.endswith("bias"):
            writing.difference(name, _sum(changes), on_bias=True)
        else:
            writing.weight(name, changes)
    writing.tensors |= _bundled(parts)
    metadata = {"modelspec.merged_from": ", ".join(part.file.path.name for part in parts)}
    write_lora(out, writing.tensors, metadata | _common(parts))
    return f"{len(gathered)} weights from {len(parts)} LoRAs, {writing.report(precision)}"


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """One part's change of one target, strength and γ in it: as factors where it has small ones."""

    shape: Shape
    form: Factored | None
    delta: Tensor | None

    def whole(self) -> Tensor:
        if self.form is not None:
            return self.form.whole(self.shape)
        return torch.zeros(self.shape) if self.delta is None else self.delta


class _Writing:
    """The tensors of the merged file, and the account of how they were made."""

    def __init__(self, dtype: torch.dtype, rank: int | None, energy: float | None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._dtype, self._rank, self._energy = dtype, rank, energy
        self._reduces = rank is not None or energy is not None
        self._ranks: list[int] = []
        self._wholes = 0
        self._kept = self._total = 0.0

    def difference(self, name: str, delta: Tensor, *, on_bias: bool = False) -> None:
        self.tensors |= difference_tensors(name, delta, self._dtype, on_bias=on_bias)

    def weight(self, name: str, changes: Sequence[_Change]) -> None:
        """The sum of several changes of one weight."""
        shape = changes[0].shape
        forms = [change.form for change in changes if change.form is not None]
        if len(forms) == len(changes):
            form = side_by_side(forms)
            if self._reduces:
                plain = form.plain()
                form = self._counted(reduce_product(plain.up, plain.down, self._rank, self._energy))
        else:
            whole = _sum(changes)
            if whole.dim() < 2 or not self._reduces:
                self._wholes += 1
                self.difference(name, whole)
                return
            form = self._counted(reduce_matrix(whole.flatten(1), self._rank, self._energy))
        self._ranks.append(form.rank)
        self.tensors |= factor_tensors(name, form, shape, self._dtype)

    def _counted(self, form: LowRankForm) -> Factored:
        self._kept, self._total = self._kept + form.kept, self._total + form.total
        return form.factors

    def report(self, precision: str) -> str:
        said = f"{self._kept / self._total:.4%} of ‖ΔW‖² kept" if self._total else "exact"
        said += "" if precision == "fp32" else f" but for rounding to {precision}"
        if self._ranks:
            low, high = min(self._ranks), max(self._ranks)
            ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
            said += f"; {len(self._ranks)} as factors of {ranks}"
        return said + (f"; {self._wholes} as whole differences" if self._wholes else "")


def _gather(parts: Sequence[Part], base: Mapping[ComponentName, Component]) -> dict[Place, list[_Change]]:
    gathered: dict[Place, list[_Change]] = {}
    for part in parts:
        placement = place(part.file, base)
        _refuse(part.file, placement)
        tensors = TensorFile(part.file.path)
        for piece in placement.pieces:
            change = _change(piece, tensors, part)
            gathered.setdefault((piece.component, piece.target), []).append(change)
    return gathered


def _refuse(file: LoraFile, placement: Placement) -> None:
    """InputError where a file holds what a merged one could not say, or what the base has no place for."""
    dependent = [
        f"{piece.module} ({(piece.found.wrapper or piece.found.algebra).title})"
        for piece in placement.pieces
        if piece.found.of_weight or piece.enlarges
    ]
    if dependent:
        raise InputError(
            f"{file.path}: {len(dependent)} modules change with the weight they are applied to"
            f" ({shorten(dependent, 3)}); no LoRA can hold that for every base"
        )
    left = [*placement.unplaced, *(f"{one.module}: {one.reason}" for one in placement.rejected)]
    left += placement.unknown
    left += [
        name for one in placement.ignored if one.reason not in (BUNDLED, BOOKKEEPING) for name in one.modules
    ]
    if left:
        raise InputError(
            f"{file.path}: {len(left)} of its names have no place in the base ({shorten(left, 3)})"
        )


def _change(piece: Piece, tensors: TensorFile, part: Part) -> _Change:
    given = {role: tensors.read(key) for role, key in piece.keys.items()}
    exact = {role: tensor.to(torch.float32) for role, tensor in given.items()}
    scale = piece.scale.gamma * part.strength
    refuse_not_finite(f"{part.file.path}: {piece.module}", exact.values(), scale)
    form = piece.found.algebra.factored(exact, piece.shape)
    if form is not None:
        return _Change(piece.shape, form.scaled(scale), None)
    change = piece.found.change(Ingredients(given, piece.shape, piece.scale.gamma))
    return _Change(piece.shape, None, change.delta(torch.zeros(piece.shape)) * part.strength)


def _sum(changes: Sequence[_Change]) -> Tensor:
    return sum((change.whole() for change in changes), torch.zeros(()))


def _bundled(parts: Sequence[Part]) -> dict[str, Tensor]:
    """The textual-inversion vectors of all parts; InputError where two give one name to different ones."""
    found: dict[str, Tensor] = {}
    for part in parts:
        tensors = TensorFile(part.file.path)
        for key in part.file.bundled:
            vectors = tensors.read(key)
            if key in found and not torch.equal(found[key], vectors):
                raise InputError(f"{part.file.path}: another file bundles {key} too, with other values")
            found[key] = vectors
    return found


def _common(parts: Sequence[Part]) -> dict[str, str]:
    """Metadata on which all parts agree: what they are for."""
    keys = ("ss_base_model_version", "ss_sd_model_name", "modelspec.architecture", "ss_v2")
    first = parts[0].file.metadata
    return {
        key: first[key]
        for key in keys
        if key in first and all(part.file.metadata.get(key) == first[key] for part in parts)
    }
