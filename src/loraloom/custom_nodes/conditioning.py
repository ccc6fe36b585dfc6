"""CONDITIONING as packs know it, `[[tensor, {"pooled_output": …, …}], …]`, and as `tuple[Cond, ...]`.

The shape of a value decides, not the type of the socket: a conditioning may also come through a wildcard.
What text encoders say beside their states stands in the dictionary under ComfyUI's names, so that it comes
back from a pack.
"""

from __future__ import annotations

import re
from typing import TypeGuard, cast

from torch import Tensor

from loraloom.sampling.types import Cond, Conditioning

_POOLED, _MASK, _RECIPE = "pooled_output", "attention_mask", "loraloom_recipe"
_EXTRA = re.compile(r"image_slots|\w+_(ids|weights)")
"""Names of what families read beside (`Cond.extras`)."""


def to_pack(value: object) -> object:
    """A value as a pack's function gets it: a conditioning as fresh lists, all else as it is."""
    if not _is_ours(value):
        return value
    return [[cond.context, _said(cond)] for cond in value]


def from_pack(value: object) -> object:
    """A value as our nodes get it: a pack's conditioning as a tuple of Cond, all else as it is."""
    if not _is_theirs(value):
        return value
    return tuple(_cond(context, options) for context, options in value)


def conditioning(value: object) -> Conditioning:
    """What a pack returned for an output of type CONDITIONING; raises TypeError if it is none."""
    if isinstance(value, list | tuple) and not value:
        return ()
    found = from_pack(value)
    if not _is_ours(found):
        raise TypeError(
            f"a CONDITIONING output is a {type(value).__name__}; expected [[tensor, dictionary], …]"
        )
    return found


def _said(cond: Cond) -> dict[str, object]:
    said: dict[str, object] = {_POOLED: cond.pooled, **cond.extras}
    if cond.mask is not None:
        said[_MASK] = cond.mask
    if cond.recipe:
        said[_RECIPE] = cond.recipe
    return {**said, **cond.options}


def _cond(context: Tensor, options: dict[str, object]) -> Cond:
    rest = dict(options)
    pooled, recipe = rest.pop(_POOLED, None), rest.pop(_RECIPE, "")
    mask = rest.pop(_MASK) if isinstance(found := rest.get(_MASK), Tensor) and found.ndim == 2 else None
    extras = {
        name: value for name, value in rest.items() if _EXTRA.fullmatch(name) and isinstance(value, Tensor)
    }
    return Cond(
        context,
        pooled if isinstance(pooled, Tensor) else None,
        {name: value for name, value in rest.items() if name not in extras},
        cast("Tensor | None", mask),
        extras,
        str(recipe),
    )


def _is_ours(value: object) -> TypeGuard[Conditioning]:
    if not isinstance(value, tuple) or not value:
        return False
    return all(isinstance(item, Cond) for item in cast("tuple[object, ...]", value))


def _is_theirs(value: object) -> TypeGuard[list[tuple[Tensor, dict[str, object]]]]:
    return isinstance(value, list) and bool(value) and all(_is_pair(i) for i in cast("list[object]", value))


def _is_pair(item: object) -> bool:
    if not isinstance(item, list | tuple):
        return False
    parts = cast("tuple[object, ...]", item)
    return len(parts) == 2 and isinstance(parts[0], Tensor) and isinstance(parts[1], dict)
