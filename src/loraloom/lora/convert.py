"""A LoRA in another dialect: the same tensors under other names, and nothing lost.

Where one dialect has a fused layer and the other its parts, parts become one block-diagonal LoRA, and a
fused one is cut by rows; both are exact. diffusers' dialect has no alpha: γ goes into the up factor, in
float32 where the stored type could not hold the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.alpha import CAYLEY_TERMS, SCALE_KEYS, STATED_ALPHAS
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import LoraFile
from loraloom.lora.place import Piece, place
from loraloom.lora.receipt import shorten
from loraloom.lora.writing import Speller, refuse_inputs, stated_scale, write_lora
from loraloom.weights.patch import Target
from loraloom.weights.tensor_file import TensorFile

_SUFFIXES: Mapping[str, str] = {
    "up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight", "up_bias": "lora_B.bias",
    "gamma": "scale", "dora": "dora_scale", "magnitude": "lora_magnitude_vector", "ia3": "ia3_l",
    "a1": "a1.weight", "a2": "a2.weight", "b1": "b1.weight", "b2": "b2.weight", "bm": "bm.weight",
    "oft_r": "oft_R.weight", "scaled_oft": "oft_R.scaled_oft",
}  # fmt: skip
"""Role → suffix, where they differ."""

_PEFT = {"up": "lora_B.weight", "down": "lora_A.weight"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A module to be written: its target in the new dialect and its tensors by role."""

    component: ComponentName
    target: Target
    tensors: Mapping[str, Tensor]
    gamma: float
    kind: str


def convert(file: LoraFile, base: Mapping[ComponentName, Component], out: Path, dialect: str) -> str:
    """Write the LoRA in `dialect` ("kohya", "native", "diffusers"). Returns what it holds, in one line.

    InputError where a module does not fit the base, or the dialect cannot say it: nothing is dropped.
    """
    refuse_inputs(out, [file.path])
    speller = Speller(base, dialect)
    placement = place(file, base)
    left = [*placement.unplaced, *(one.module for one in placement.rejected), *placement.unknown]
    left += [name for one in placement.ignored for name in one.modules if name not in file.bundled]
    if left:
        raise InputError(f"{file.path}: {len(left)} modules have no place in the base ({shorten(left, 3)})")
    tensors = TensorFile(file.path)
    entries = [_entry(piece, tensors, file) for piece in placement.pieces]
    written: dict[str, Tensor] = {}
    for entry in _respelled(entries, speller):
        name = _name(entry, speller)
        if name is None:
            where = (
                f"{entry.target.weight} rows {entry.target.rows}"
                if entry.target.rows
                else entry.target.weight
            )
            raise InputError(f"{file.path}: {dialect} names cannot say {entry.kind} on {where}")
        for suffix, tensor in _suffixed(entry, dialect).items():
            written[f"{name}.{suffix}"] = tensor
    written |= {key: tensors.read(key) for key in file.bundled}
    stale = (*SCALE_KEYS, *STATED_ALPHAS) if dialect == "diffusers" else SCALE_KEYS
    metadata = {key: value for key, value in file.metadata.items() if key not in stale}
    write_lora(out, written, metadata)
    return f"{len({piece.module for piece in placement.pieces})} modules as {dialect} names"


def _entry(piece: Piece, tensors: TensorFile, file: LoraFile) -> _Entry:
    if piece.found.kind == "oftv2" and piece.cayley_terms != CAYLEY_TERMS:
        raise InputError(f"{file.path}: only PEFT's config can say how its rotations are to be computed")
    given = {role: tensors.read(key) for role, key in piece.keys.items()}
    if not {"alpha", "gamma"} & given.keys():
        shapes = {role: tuple(tensor.shape) for role, tensor in given.items()}
        given |= stated_scale(piece.found, shapes, piece.scale.gamma)
    return _Entry(piece.component, piece.target, given, piece.scale.gamma, piece.found.kind)


def _name(entry: _Entry, speller: Speller) -> str | None:
    target = entry.target
    if target.weight.endswith(".bias"):
        weight = target.weight.removesuffix("bias") + "weight"
        target = Target(weight, target.rows, target.swapped)
    return speller.name(entry.component, target)


def _respelled(entries: Sequence[_Entry], speller: Speller) -> list[_Entry]:
    """Entries that the dialect can name: fused ones cut, parts joined, halves exchanged, where needed."""
    done: list[_Entry] = []
    waiting: dict[tuple[ComponentName, str], list[_Entry]] = {}
    for entry in entries:
        if (
            _name(entry, speller) is not None
            or entry.kind != "lora"
            or "mid" in entry.tensors
            or {"dora", "magnitude"} & entry.tensors.keys()
        ):
            done.append(entry)
        elif entry.target.rows is not None:
            waiting.setdefault((entry.component, entry.target.weight), []).append(entry)
        else:
            done += _cut(entry, speller) or [_exchanged(entry)]
    for (component, weight), parts in waiting.items():
        done.append(_joined(parts, speller.rows(component, weight)))
    return done


def _exchanged(entry: _Entry) -> _Entry:
    """The same change for the rows with their halves the other way round."""
    up = entry.tensors["up"]
    target = Target(entry.target.weight, None, not entry.target.swapped)
    return _Entry(
        entry.component, target, {**entry.tensors, "up": up.roll(len(up) // 2, 0)}, entry.gamma, "lora"
    )


def _cut(entry: _Entry, speller: Speller) -> list[_Entry]:
    """A fused LoRA as one LoRA for each part: the rows of up, all of down."""
    cut: list[_Entry] = []
    for target in speller.parts(entry.component, entry.target.weight):
        begin, end = target.rows or (0, 0)
        rows = entry.tensors["up"][begin:end].clone()
        cut.append(_Entry(entry.component, target, {**entry.tensors, "up": rows}, entry.gamma, "lora"))
    covered = sum(len(one.tensors["up"]) for one in cut)
    return cut if covered == len(entry.tensors["up"]) else []


def _joined(parts: Sequence[_Entry], total_rows: int) -> _Entry:
    """The parts of a fused layer as one LoRA: ups on the diagonal, downs below each other."""
    rank = sum(len(part.tensors["down"]) for part in parts)
    up = parts[0].tensors["up"].new_zeros(total_rows, rank)
    gamma = parts[0].gamma
    column = 0
    for part in parts:
        begin, end = part.target.rows or (0, total_rows)
        width = len(part.tensors["down"])
        block = part.tensors["up"].flatten(1)
        if part.gamma != gamma:
            up, block = up.to(torch.float32), block.to(torch.float32) * (part.gamma / gamma)
        up[begin:end, column : column + width] = block
        column += width
    down = torch.cat([part.tensors["down"] for part in parts])
    tensors = {"up": up, "down": down}
    if gamma != 1 or "alpha" in parts[0].tensors:
        tensors["alpha"] = torch.tensor(gamma * rank)
    return _Entry(parts[0].component, Target(parts[0].target.weight), tensors, gamma, "lora")


def _suffixed(entry: _Entry, dialect: str) -> dict[str, Tensor]:
    """Tensors by suffix in the dialect."""
    tensors = dict(entry.tensors)
    if entry.kind == "bias" and "down" in tensors:  # alpha and down are written with the LoRA beside it
        bias = tensors["up_bias"]
        folded = dialect == "diffusers" and entry.gamma != 1
        return {_SUFFIXES["up_bias"]: bias.to(torch.float32) * entry.gamma if folded else bias}
    if dialect != "diffusers" or entry.kind != "lora" or "mid" in tensors:
        if "magnitude" in tensors:  # kohya's name for it, and its shape
            magnitude = tensors.pop("magnitude").flatten()
            tensors["dora"] = magnitude.view(-1, *[1] * (tensors["down"].dim() - 1))
        return {_SUFFIXES.get(role, role): tensor for role, tensor in tensors.items()}
    tensors.pop("alpha", None)
    tensors.pop("gamma", None)
    if entry.gamma != 1:
        up = tensors["up"]
        scaled = up.to(torch.float32) * entry.gamma
        is_exact = bool((scaled.to(up.dtype).to(torch.float32) == scaled).all())
        tensors["up"] = scaled.to(up.dtype) if is_exact else scaled
    if "dora" in tensors and tensors["dora"].shape[0] != 1:
        tensors["magnitude"] = tensors.pop("dora").flatten()
    return {_PEFT.get(role) or _SUFFIXES.get(role, role): tensor for role, tensor in tensors.items()}
