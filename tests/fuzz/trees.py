"""Changes of the JSON in an input, which changes of its bytes would mostly only break."""

from __future__ import annotations

import random
from typing import Any

from tests.fuzz.targets import Tree

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -1e308, "", "1", "\ud800", "a" * 3000, [], {},
    [[]], [None], ["1", 0], ["1", -1], ["1", 1e30], {"": None}, {"__value__": []}, [0] * 200,
)  # fmt: skip


def changed(content: bytes, other: bytes, tree: Tree, rng: random.Random) -> bytes:
    """`content` with a few places of its tree changed, some to pieces of the other's. Raises ValueError or
    RecursionError when one of them holds no tree, or no longer one that can be written."""
    whole = [tree.read(content)]
    pieces = tree.read(other)
    for _ in range(rng.choice((1, 1, 2, 5))):
        _change(whole, pieces, rng)
    return tree.write(whole[0])


def _change(whole: list[Any], pieces: Any, rng: random.Random) -> None:
    holder: Any = whole
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice([*holder]) if isinstance(holder, dict) else rng.randrange(len(holder))
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            holder[str(rng.choice((*holder, "", "-1", "9" * 30)))] = holder.pop(key)
        case 1 if holder is not whole:
            del holder[key]
        case 2 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 3:
            while isinstance(pieces, dict | list) and pieces and rng.random() < 0.8:
                pieces = rng.choice([*(pieces.values() if isinstance(pieces, dict) else pieces)])
            holder[key] = pieces
        case _:
            holder[key] = rng.choice(_VALUES)
