"""One LoRA from several: factors side by side, which is exact, or reduced by SVD."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.component import Component, ComponentName, bias_of
from loraloom.lora.file import LoraFile, read_lora
from loraloom.lora.low_rank import check_size, reduce_matrix, reduce_product
from loraloom.lora.place import Piece, place
from loraloom.lora.receipt import shorten
from loraloom.lora.writing import PRECISIONS, Speller, write_lora
from loraloom.weights.patch import Target
from loraloom.weights.tensor_file import TensorFile

DEPENDENT = frozenset({"glora", "oft", "boft", "oftv2", "ia3", "set"})
"""Algebras whose ΔW depends on the weight: no file can hold it for every base."""


@dataclass(frozen=True, slots=True)
class Part:
    """A LoRA and the strength with which it enters."""

    file: LoraFile
    strength: float


def read_part(text: str) -> Part:
    """`FILE` or `FILE:STRENGTH`; InputError where the strength is no number."""
    found = re.fullmatch(r"(.+?):(-?[0-9.]+(?:e-?[0-9]+)?)", text)
    if found and not Path(text).exists():
        return Part(read_lora(found[1]), float(found[2]))
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

    Without rank and energy nothing is lost: low-rank changes are put side by side, others added up whole.
    """
    check_size(rank, energy)
    if not parts:
        raise InputError("nothing to merge: give two LoRA files or more")
    gathered = _gather(parts, base)
    speller = Speller(base, "kohya")
    fallback = Speller(base, "diffusers")
    dtype = PRECISIONS[precision]
    written: dict[str, Tensor] = {}
    kept = total = 0.0
    for (component, target), changes in gathered.items():
        name = speller.name(component, _module(target)) or fallback.name(component, target)
        if name is None:
            raise InputError(f"{target.weight}: there is no name for these rows of it in a LoRA file")
        if target.weight.endswith("bias"):
            written[name + ".diff_b"] = sum((c.whole() for c in changes), torch.zeros(())).to(dtype)
            continue
        if all(change.factors for change in changes):
            up, down = (torch.cat(side, axis) for side, axis in zip(_sides(changes), (1, 0), strict=True))
            if rank is not None or energy is not None:
                form = reduce_product(up, down, rank, energy)
                up, down, kept, total = form.up, form.down, kept + form.kept, total + form.total
        else:
            whole = sum((change.whole() for change in changes), torch.zeros(()))
            if whole.dim() < 2 or (rank is None and energy is None):
                written[name + ".diff"] = whole.to(dtype)
                continue
            form = reduce_matrix(whole.flatten(1), rank, energy)
            up, down, kept, total = form.up, form.down, kept + form.kept, total + form.total
        shape = changes[0].shape
        written[name + ".lora_up.weight"] = up.reshape(*up.shape, *[1] * (len(shape) - 2)).to(dtype)
        written[name + ".lora_down.weight"] = down.reshape(len(down), *shape[1:]).to(dtype)
        written[name + ".alpha"] = torch.tensor(float(len(down)))
    metadata = {"modelspec.merged_from": ", ".join(part.file.path.name for part in parts)}
    metadata |= _common(parts)
    write_lora(out, written, metadata)
    said = f"{len(gathered)} weights from {len(parts)} LoRAs"
    return said + (f", {kept / total:.4%} of ‖ΔW‖² kept" if total else ", exact")


@dataclass(frozen=True, slots=True)
class _Change:
    """One part's change of one target, strength and γ in it."""

    shape: tuple[int, ...]
    factors: tuple[Tensor, Tensor] | None
    delta: Tensor | None

    def whole(self) -> Tensor:
        if self.factors is None:
            return self.delta if self.delta is not None else torch.zeros(self.shape)
        return (self.factors[0] @ self.factors[1]).view(self.shape)


def _gather(parts: Sequence[Part], base: Mapping[ComponentName, Component]) -> dict[Place, list[_Change]]:
    gathered: dict[Place, list[_Change]] = {}
    for part in parts:
        placement = place(part.file, base)
        dependent = [
            f"{piece.module} ({piece.found.kind})"
            for piece in placement.pieces
            if piece.found.kind in DEPENDENT or {"dora", "magnitude"} & piece.keys.keys() or piece.enlarges
        ]
        left = [*placement.unplaced, *(one.module for one in placement.rejected)]
        if dependent:
            raise InputError(
                f"{part.file.path}: {len(dependent)} modules change with the weight they are applied to"
                f" ({shorten(dependent, 3)}); no LoRA can hold that for every base"
            )
        if left:
            raise InputError(
                f"{part.file.path}: {len(left)} modules do not fit the base ({shorten(left, 3)})"
            )
        tensors = TensorFile(part.file.path)
        for piece in placement.pieces:
            change = _change(piece, tensors, part.strength)
            gathered.setdefault((piece.component, piece.target), []).append(change)
    return gathered


def _change(piece: Piece, tensors: TensorFile, strength: float) -> _Change:
    from loraloom.lora.algebra import Ingredients
    from loraloom.lora.load import change_of

    parts = {role: tensors.read(key) for role, key in piece.keys.items()}
    gamma = piece.scale.gamma * strength
    if piece.found.kind == "lora" and "mid" not in parts:
        up = parts["up"].to(torch.float32).flatten(1) * gamma
        return _Change(piece.shape, (up, parts["down"].to(torch.float32).flatten(1)), None)
    change = change_of(piece.found.kind, Ingredients(parts, piece.shape, piece.scale.gamma))
    return _Change(piece.shape, None, change.delta(torch.zeros(piece.shape)) * strength)


def _sides(changes: Sequence[_Change]) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [change.factors for change in changes if change.factors is not None]
    return [up for up, _ in pairs], [down for _, down in pairs]


def _module(target: Target) -> Target:
    """The weight that a bias belongs to."""
    if not target.weight.endswith(".bias"):
        return target
    weight = target.weight.removesuffix("bias") + "weight"
    return Target(weight if bias_of(weight) == target.weight else target.weight, target.rows, target.swapped)


def _common(parts: Sequence[Part]) -> dict[str, str]:
    """Metadata on which all parts agree: what they are for."""
    keys = ("ss_base_model_version", "ss_sd_model_name", "modelspec.architecture", "ss_v2")
    first = parts[0].file.metadata
    return {
        key: first[key]
        for key in keys
        if key in first and all(part.file.metadata.get(key) == first[key] for part in parts)
    }
