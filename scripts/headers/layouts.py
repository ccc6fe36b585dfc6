"""What published model files hold, as names and shapes: tables, layouts, storage formats, LoRA spellings.

A table (`tables/NAME.txt`) has one line per kind of weight:

    NAME SIZE…        a weight NAME.weight of that shape
    NAME SIZE… +      and a bias NAME.bias as long as the first size
    NAME = SIZE…      a tensor of exactly that name

In names `{19}` stands for every number below 19 and `{a|b}` for each alternative; `$d` is a size that the
caller gives, `$d*3` a product.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TypeAlias

TABLES = Path(__file__).parent / "tables"

Shape: TypeAlias = "tuple[int, ...]"
Shapes: TypeAlias = "dict[str, Shape]"
Tensors: TypeAlias = "dict[str, tuple[str, Shape]]"


def table(name: str, **sizes: int) -> Shapes:
    """The weights of one table."""
    found: Shapes = {}
    for line in (TABLES / f"{name}.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            words = [re.sub(r"\$([a-z])", lambda match: str(sizes[match[1]]), word) for word in line.split()]
            has_bias, is_exact = words[-1] == "+", words[1] == "="
            shape = tuple(prod(map(int, word.split("*"))) for word in words[1:] if word not in "+=")
            for name in expanded(words[0]):
                found[name if is_exact else f"{name}.weight"] = shape
                if has_bias:
                    found[f"{name}.bias"] = shape[:1]
    return found


def expanded(text: str) -> Iterator[str]:
    """A name with braces → every name that it stands for; the innermost braces first."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        yield text
        return
    inner = match[1]
    choices = inner.split("|") if "|" in inner else map(str, range(int(inner)))
    for choice in choices:
        yield from expanded(text[: match.start()] + choice + text[match.end() :])


def under(prefix: str, shapes: Mapping[str, Shape]) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def typed(dtype: str, shapes: Mapping[str, Shape]) -> Tensors:
    return {name: (dtype, shape) for name, shape in shapes.items()}


def without(shapes: Mapping[str, Shape], part: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if part not in name}
