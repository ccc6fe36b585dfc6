"""A LoRA in another dialect: the same tensors under other names, and nothing lost.

Where one dialect has a fused layer and the other its parts, parts become one block-diagonal LoRA, and a
fused one is cut by rows; both are exact. diffusers' dialect has no alpha: γ goes into the up factor, in
float32 where the stored type could not hold the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.algebra import SHARED, Part
from loraloom.lora.algebras import Found
from loraloom.lora.alpha import SCALE_KEYS, STATED_ALPHAS
from loraloom.lora.component import Component, ComponentName, owner_of
from loraloom.lora.file import LoraFile
from loraloom.lora.place import Piece, place
from loraloom.lora.receipt import shorten
from loraloom.lora.writing import Speller, by_ending, refuse_inputs, stated_scale, write_lora
from loraloom.weights.patch import Target
from loraloom.weights.tensor_file import TensorFile


@dataclass(frozen=True, slots=True)
class _Entry:
    """A module to be written: its target in the new dialect, its tensors by role, and what it changes: a
    weight of so many rows and dimensions."""

    component: ComponentName
    target: Target
    found: Found
    tensors: Mapping[str, Tensor]
    gamma: float
    rows: int
    dimensions: int


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
            where = entry.target.weight + (f" rows {entry.target.rows}" if entry.target.rows else "")
            raise InputError(f"{file.path}: {dialect} names cannot say {entry.found.algebra.name} on {where}")
        made = by_ending(entry.found, entry.tensors, entry.gamma, entry.dimensions, dialect)
        written |= {name + ending: tensor for ending, tensor in made.items()}
    written |= {key: tensors.read(key) for key in file.bundled}
    stale = (*SCALE_KEYS, *STATED_ALPHAS) if dialect == "diffusers" else SCALE_KEYS
    metadata = {key: value for key, value in file.metadata.items() if key not in stale}
    write_lora(out, written, metadata)
    return f"{len({piece.module for piece in placement.pieces})} modules as {dialect} names"


def _entry(piece: Piece, tensors: TensorFile, file: LoraFile) -> _Entry:
    if (unsaid := piece.found.algebra.unsaid(piece.config)) is not None:
        raise InputError(f"{file.path}: only PEFT's config can say {unsaid}")
    given = {role: tensors.read(key) for role, key in piece.keys.items()}
    gamma = piece.scale.gamma
    if given.keys().isdisjoint(SHARED.values()):
        given |= stated_scale(piece.found, {role: tuple(t.shape) for role, t in given.items()}, gamma)
    return _Entry(
        piece.component, piece.target, piece.found, given, gamma, prod(piece.shape[:1]), len(piece.shape)
    )


def _name(entry: _Entry, speller: Speller) -> str | None:
    return speller.name(entry.component, replace(entry.target, weight=owner_of(entry.target.weight)))


def _respelled(entries: Sequence[_Entry], speller: Speller) -> list[_Entry]:
    """Entries that the dialect can name: fused ones cut, parts joined, halves exchanged, where needed."""
    done: list[_Entry] = []
    waiting: dict[tuple[ComponentName, str, str], list[_Entry]] = {}
    for entry in entries:
        by_rows = entry.found.wrapper is None and entry.found.algebra.is_by_rows(entry.tensors)
        if not by_rows or _name(entry, speller) is not None:
            done.append(entry)
        elif entry.target.rows is not None:
            key = (entry.component, entry.target.weight, entry.found.algebra.name)
            waiting.setdefault(key, []).append(entry)
        else:
            done += _cut(entry, speller) or [_exchanged(entry)]
    for (component, weight, _), parts in waiting.items():
        done.append(_joined(parts, speller.rows(component, weight)))
    return done


def _exchanged(entry: _Entry) -> _Entry:
    """The same change for the rows with their halves the other way round."""
    half = entry.rows - entry.rows // 2
    tensors = entry.found.algebra.rows(entry.tensors, [(half, entry.rows), (0, half)])
    return replace(entry, target=Target(entry.target.weight, None, not entry.target.swapped), tensors=tensors)


def _cut(entry: _Entry, speller: Speller) -> list[_Entry]:
    """A fused layer's change as one for each part; [] where the parts do not cover it."""
    cut: list[_Entry] = []
    for target in speller.parts(entry.component, entry.target.weight):
        begin, end = target.rows or (0, 0)
        tensors = entry.found.algebra.rows(entry.tensors, [(begin, end)])
        cut.append(replace(entry, target=target, tensors=tensors, rows=end - begin))
    return cut if sum(one.rows for one in cut) == entry.rows else []


def _joined(entries: Sequence[_Entry], rows: int) -> _Entry:
    """The parts of a fused layer as one change of it."""
    first = entries[0]
    parts = [Part(one.tensors, one.gamma, *(one.target.rows or (0, rows))) for one in entries]
    tensors = first.found.algebra.joined(parts, rows)
    return replace(first, target=Target(first.target.weight), tensors=tensors, rows=rows)
