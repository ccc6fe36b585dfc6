"""What ComfyUI gave for the narrow encoders of `tests.narrow_models`: tokens and conditionings."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "data/families"


@cache
def stated() -> dict[str, Any]:
    """Prompts, tokens and settings by family."""
    return json.loads(gzip.decompress((FOLDER / "text.json.gz").read_bytes()))


@cache
def measured() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "text.npz") as figures:
        return dict(figures)


def tokens(family: str, prompt: str) -> dict[str, list[tuple[int, float]]]:
    """Encoder key → token numbers and weights; the last one is repeated to the length."""
    found: dict[str, list[tuple[int, float]]] = {}
    for key, (chunk,) in stated()[family]["tokens"][prompt].items():
        pairs = [(t, 1.0) if isinstance(t, int) else (t[0], t[1]) for t in chunk["ids"]]
        found[key] = pairs + pairs[-1:] * (chunk["length"] - len(pairs))
    return found


def distance(found: Tensor, name: str) -> float:
    """Relative distance of a conditioning (1, T, D) or vector from the figure of that name, of which there
    may be the first rows and the length of all only."""
    figures = measured()
    if name in figures:
        return _relative(found, figures[name])
    far = _relative(found.norm(dim=-1), figures[f"{name}|norm"])
    head = figures.get(f"{name}|head")
    return far if head is None else max(far, _relative(found[:, : head.shape[1]], head))


def _relative(found: Tensor, expected: np.ndarray) -> float:
    wanted = torch.from_numpy(expected)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float((found.float() - wanted).norm() / wanted.norm())
