"""How a family's weights are called: the original checkpoint's names and those of the module that computes.

One table of rows says it, and is read three ways: where a module's parameters come from (`placements`), by
which module paths a LoRA may name a weight (`aliases`), and how a file in the module's own layout makes up
the native weights (`regrouping`). "{}" stands for one part of a dotted name, "{*}" for all that follows.

    Names({"img_in": "x_embedder",
           "blocks.{}.qkv": Rows("blocks.{}.to_q", "blocks.{}.to_k", "blocks.{}.to_v"),
           "blocks.{}.norm.scale": "blocks.{}.norm.weight"}, rest=SAME)

A row is about a module, whose parameters keep their own names ("weight", "bias"), or about one parameter
where both sides name it. No torch.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

from loraloom.errors import ModelFileError
from loraloom.weights.patch import Rows as RowRange
from loraloom.weights.patch import Target

Shape: TypeAlias = "tuple[int, ...]"
Shapes: TypeAlias = Mapping[str, Shape]
"""Native weight name → shape."""

Regrouping: TypeAlias = Mapping[str, "tuple[tuple[str, RowRange], ...]"]
"""Native weight name → the tensors, by name and rows, that make it up in a file of another layout."""

SAME: Literal["same"] = "same"
"""`Names.rest`: what no row is about is called alike on both sides."""

_HOLE = re.compile(r"\{\*?\}")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a module's parameter comes from: row ranges of a native weight, concatenated in order (none:
    all of it), reshaped to the parameter's shape."""

    native: str
    rows: tuple[tuple[int, int], ...] = ()


Placements: TypeAlias = Mapping[str, Placement]
"""Name of a module's parameter or buffer → its placement."""


def equal_parts(weight: Shape, count: int) -> tuple[int, ...]:
    """Rows of a fused weight in equal parts."""
    return (weight[0] // count,) * count


@dataclass(frozen=True, slots=True, init=False)
class Rows:
    """A native weight whose rows, one range after the other, are the weights of several modules.

    sizes: shape of the native weight, number of parts → rows of each part."""

    parts: tuple[str, ...]
    sizes: Callable[[Shape, int], tuple[int, ...]]

    def __init__(self, *parts: str, sizes: Callable[[Shape, int], tuple[int, ...]] = equal_parts) -> None:
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "sizes", sizes)


@dataclass(frozen=True, slots=True)
class Swapped:
    """A native weight whose two halves of rows the module holds in the other order (scale and shift)."""

    module: str


Row: TypeAlias = "str | Rows | Swapped"


class NameMap(Protocol):
    """The names of a family: a table, or what makes one from the shapes of a file."""

    def of_native(self, shapes: Shapes) -> Names:
        """The table for native weights of these names and shapes."""
        ...

    def of_module(self, shapes: Shapes) -> Names | None:
        """The table for a file in the module's own layout; None where it is plainly none."""
        ...


@dataclass(frozen=True)
class Names:
    """A table of names.

    rows: native name → the module's. rest: `SAME`, or None: what no row is about is not the network's.
    also: further paths by which LoRA files know a module: path → native or module path, or several paths
        whose rows follow each other in one native weight.
    parts: native path → further module paths by which LoRA files know ranges of its rows.
    unused: patterns (`fnmatch`) of native names that files hold and the network does not use.
    """

    rows: Mapping[str, Row] = field(default_factory=lambda: dict[str, Row]())
    rest: Literal["same"] | None = None
    also: Mapping[str, str | tuple[str, ...]] = field(
        default_factory=lambda: dict[str, str | tuple[str, ...]]()
    )
    parts: Mapping[str, Rows] = field(default_factory=lambda: dict[str, Rows]())
    unused: tuple[str, ...] = ()

    def of_native(self, shapes: Shapes) -> Names:
        return self

    def of_module(self, shapes: Shapes) -> Names | None:
        return self

    def placements(self, shapes: Shapes) -> dict[str, Placement]:
        """Parameter of the module → where it comes from, for every native weight of the network."""
        found: dict[str, Placement] = {}
        for native in shapes:
            for name, ranges in self._named(native, shapes):
                found[name] = Placement(native, ranges)
        return found

    def aliases(self, shapes: Shapes) -> dict[str, Target]:
        """Module path → target, for every module with a weight; norms' own parameters included."""
        found: dict[str, Target] = {}
        for native, shape in shapes.items():
            for name, ranges in self._named(native, shapes):
                path, _, parameter = name.rpartition(".")
                if parameter == "weight":
                    swapped = len(ranges) == 2
                    rows = ranges[0] if len(ranges) == 1 and ranges[0] != (0, shape[0]) else None
                    found[path] = Target(native, rows, swapped)
            found |= self._parts_of(native, shape)
        for path, target in self._also(found, shapes):
            found.setdefault(path, target)
        return found

    def could_hold(self, native: str, theirs: Shapes) -> bool:
        """Whether a file in the module's layout holds a native weight, or the first part of it."""
        path, dot, parameter = native.rpartition(".")
        for name, tail in ((native, ""), (path, dot + parameter)):
            if found := self._forward.find(name):
                row, holes = found
                first = row.parts[0] if isinstance(row, Rows) else _module_of(row)
                return _filled(first, holes) + tail in theirs
        return self.rest == SAME and native in theirs

    def regrouping(self, theirs: Shapes) -> Regrouping:
        """Native weight → the tensors that make it up in a file in the module's layout, whose names and
        shapes these are. Names that no row knows are kept, for whoever judges whether the file fits."""
        pieces: dict[str, dict[int, tuple[tuple[str, RowRange], ...]]] = {}
        for name, shape in theirs.items():
            native, number, swapped = self.origin(name)
            half = shape[0] // 2 if shape else 0
            ranges: tuple[RowRange, ...] = ((half, 2 * half), (0, half)) if swapped else (None,)
            pieces.setdefault(native, {})[number] = tuple((name, rows) for rows in ranges)
        return {
            native: tuple(piece for number in sorted(parts) for piece in parts[number])
            for native, parts in pieces.items()
        }

    def knows(self, native: str) -> bool:
        """Whether a native weight is the network's by a row of its own."""
        path = native.rpartition(".")[0]
        return self._forward.find(native) is not None or self._forward.find(path) is not None

    def is_unused(self, native: str) -> bool:
        return any(fnmatch.fnmatchcase(native, pattern) for pattern in self.unused)

    # Both ways through the table

    @cached_property
    def _forward(self) -> _Table[Row]:
        return _Table(tuple(self.rows.items()))

    @cached_property
    def _backward(self) -> _Table[tuple[str, int, bool]]:
        """The module's name → native template, number of the part, whether it is swapped."""
        found: list[tuple[str, tuple[str, int, bool]]] = []
        for native, row in self.rows.items():
            if isinstance(row, Rows):
                found += [(part, (native, number, False)) for number, part in enumerate(row.parts)]
            else:
                found.append((_module_of(row), (native, 0, isinstance(row, Swapped))))
        return _Table(tuple(found))

    @cached_property
    def _further(self) -> _Table[Rows]:
        return _Table(tuple(self.parts.items()))

    def _named(self, native: str, shapes: Shapes) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
        """(parameter of the module, rows) that a native weight feeds; nothing: it is not the network's."""
        path, dot, parameter = native.rpartition(".")
        found, tail = self._forward.find(native), ""
        if found is None and dot:
            found, tail = self._forward.find(path), dot + parameter
        if found is None:
            if self.rest == SAME and not self.is_unused(native):
                yield native, ()
            return
        row, holes = found
        if isinstance(row, Rows):
            whole = shapes.get(f"{path}.weight", shapes[native]) if tail else shapes[native]
            start = 0
            for part, count in zip(row.parts, row.sizes(whole, len(row.parts)), strict=True):
                yield _filled(part, holes) + tail, ((start, start + count),)
                start += count
        elif isinstance(row, Swapped):
            half = shapes[native][0] // 2
            yield _filled(row.module, holes) + tail, ((half, 2 * half), (0, half))
        else:
            yield _filled(row, holes) + tail, ()

    def origin(self, name: str) -> tuple[str, int, bool]:
        """(native name, number of the part, whether it is swapped) of a parameter of the module."""
        path, dot, parameter = name.rpartition(".")
        for whole, tail in ((name, ""), (path, dot + parameter)):
            if found := self._backward.find(whole):
                (native, number, swapped), holes = found
                return _filled(native, holes) + tail, number, swapped
        return name, 0, False

    def _parts_of(self, native: str, shape: Shape) -> dict[str, Target]:
        """The further paths by which LoRA files know rows of a native weight."""
        path, _, parameter = native.rpartition(".")
        if parameter != "weight" or (row := self._further.find(path)) is None:
            return {}
        rows, holes = row
        ends = list(itertools.accumulate(rows.sizes(shape, len(rows.parts)), initial=0))
        return {
            _filled(part, holes): Target(native, span)
            for part, span in zip(rows.parts, itertools.pairwise(ends), strict=True)
        }

    def _also(self, known: Mapping[str, Target], shapes: Shapes) -> Iterator[tuple[str, Target]]:
        """The further paths of LoRA files."""
        modules = dict(known)
        for native in shapes:
            if native.endswith(".weight"):
                modules.setdefault(native.removesuffix(".weight"), Target(native))
        for path, origin in self.also.items():
            first, *others = (origin,) if isinstance(origin, str) else origin
            pattern = _pattern(first)
            for own, target in modules.items():
                if not (match := pattern.fullmatch(own)):
                    continue
                parts = [target, *(modules[_filled(other, match.groups())] for other in others)]
                if len(parts) > 1 and target.rows and parts[-1].rows:
                    target = Target(target.weight, (target.rows[0], parts[-1].rows[1]))
                yield _filled(path, match.groups()), target


_Value = TypeVar("_Value")


class _Table(Generic[_Value]):
    """Templates → values. Those without holes are looked up, the others tried in one pass over a name; the
    first that matches counts."""

    def __init__(self, rows: tuple[tuple[str, _Value], ...]) -> None:
        self._exact = {template: value for template, value in reversed(rows) if not _HOLE.search(template)}
        self._values: dict[int, tuple[_Value, int]] = {}
        group, pieces = 1, list[str]()
        for template, value in rows:
            if holes := len(_HOLE.findall(template)):
                self._values[group] = value, holes
                pieces.append(f"({_pattern(template).pattern})")
                group += 1 + holes
        self._all = re.compile("|".join(pieces))

    def find(self, name: str) -> tuple[_Value, tuple[str, ...]] | None:
        """The value of a name, and what its holes hold."""
        if name in self._exact:
            return self._exact[name], ()
        match = self._all.fullmatch(name) if self._values else None
        if match is None or match.lastindex is None:
            return None
        value, holes = self._values[match.lastindex]
        return value, match.groups()[match.lastindex : match.lastindex + holes]


def _module_of(row: str | Swapped) -> str:
    return row.module if isinstance(row, Swapped) else row


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a pattern of whole names, with a group per hole."""
    literal = [re.escape(piece) for piece in _HOLE.split(template)]
    holes = [r"(.+)" if hole == "{*}" else r"([^.]+)" for hole in _HOLE.findall(template)]
    pieces = [literal[0]]
    for hole, piece in zip(holes, literal[1:], strict=True):
        pieces += [hole, piece]
    return re.compile("".join(pieces))


def _filled(template: str, holes: tuple[str, ...]) -> str:
    pieces = _HOLE.split(template)
    if len(pieces) != len(holes) + 1:
        raise ModelFileError(f"the row {template!r} has {len(pieces) - 1} holes; {len(holes)} were given")
    return pieces[0] + "".join(hole + piece for hole, piece in zip(holes, pieces[1:], strict=True))
