"""Tensors and JSON on disk, written whole or not at all; safetensors only, never pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from loraloom.atomic_file import write_file
from loraloom.errors import InputError


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """One safetensors file."""
    from safetensors.torch import save

    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_file(path, save(ready, dict(metadata or {})))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in fresh memory. InputError for a file that is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it, it will be made again") from error


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """One JSON file."""
    write_file(path, json.dumps(content, indent=1).encode())


def read_json(path: Path) -> dict[str, object]:
    """An object from a JSON file. InputError for anything else."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return cast("dict[str, object]", found)
