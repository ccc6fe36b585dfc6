"""A training that goes on from a LoRA file instead of from nothing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.family import Family
from loraloom.training.export import Adapters, kohya_tensors
from loraloom.weights.tensor_file import TensorFile

TEXT = "lora_te"
"""What names of the text encoders' layers begin with."""


def open_start(path: Path) -> TensorFile:
    """The file, opened before anything that takes long. Raises InputError where it is no safetensors file."""
    try:
        return TensorFile(path)
    except InputError as error:
        raise InputError(f"adapter.start: {error}") from error


def start_from(file: TensorFile, adapters: Adapters, family: Family) -> None:
    """Fill fresh adapters with a file's tensors, under the names that `loraloom train` gives them.

    InputError, before anything is filled, where the file holds other layers, sizes or scales, or tensors that
    no parameter holds as they are (those of kinds whose scale is multiplied in)."""
    path = file.path
    places = kohya_tensors(adapters, family, torch.Tensor.detach)
    held = {p.data_ptr() for adapter in adapters.values() for p in adapter.parameters().values()}
    if others := sorted(places.keys() ^ file.header.tensors.keys()):
        both = len(places.keys() & file.header.tensors.keys())
        which = "holds no" if others[0] in places else "also holds"
        raise InputError(
            f"adapter.start: {path} holds {both} of the {len(places)} tensors that are trained, and {which}"
            f" {others[0]}; {_remedy(others, places, file.header.tensors)}"
        )
    found = {name: file.read(name, torch.float32) for name in places}
    for name, place in places.items():
        _check(path, name, found[name], place)
        if not name.endswith(".alpha") and place.data_ptr() not in held:
            raise InputError(
                f"adapter.start: a LoRA of this kind cannot be gone on from; found in {path}: {name}"
            )
    for name, place in places.items():
        place.copy_(found[name].view_as(place))


def _remedy(others: list[str], places: Collection[str], in_file: Collection[str]) -> str:
    """What to do about the tensors (others) of which only the training or only the file knows."""
    text_here, text_there = (any(n.startswith(TEXT) for n in names) for names in (places, in_file))
    if text_here != text_there and all(name.startswith(TEXT) for name in others):
        return f"set adapter.text_encoder to {'true' if text_there else 'false'}"
    return "start from a LoRA of the same kind and layers, as `loraloom train` writes it"


def _check(path: Path, name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape and found.numel() * expected.numel() != 1:
        raise InputError(
            f"adapter.start: {name} of {path} is {_size(found)}; adapter.rank and the base make it"
            f" {_size(expected)}: start from a LoRA of the same rank for the same base"
        )
    if name.endswith(".alpha") and float(found) != float(expected):
        raise InputError(
            f"adapter.start: {path} has alpha {float(found):g}, adapter.alpha makes it {float(expected):g}; "
            "set it to that of the file"
        )
    if not bool(found.isfinite().all()):
        raise InputError(f"adapter.start: {name} of {path} is not finite; start from an earlier file")


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"
