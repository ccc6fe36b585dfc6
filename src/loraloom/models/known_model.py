"""A network that Loraloom knows: told by the header of its file, built from the shapes of its weights alone.

What diffusion networks (`family`) and autoencoders (`autoencoder`) have in common. No torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from loraloom.errors import ModelFileError
from loraloom.models.library_class import library_class
from loraloom.models.names import NameMap, Placements, Regrouping, Shapes
from loraloom.weights.patch import Rows

if TYPE_CHECKING:
    from torch import nn

Config = Mapping[str, object]


@contextmanager
def from_shapes(what: str) -> Generator[None, None, None]:
    """Around code that reads a layout from names and shapes as they should be: where they are not, a
    ModelFileError says that they do not make `what`."""
    try:
        yield
    except (LookupError, ValueError, ArithmeticError, TypeError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelFileError(f"the weights do not make {what}: {problem}") from error


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A network as the shapes of its weights determine it.

    build: makes the module, its parameters on "meta" (`weights.meta.build_unfilled`).
    unused: patterns (`fnmatch`) of native names that files of this family hold and the network does not use.
    exact: see `Module`.
    """

    config: Config
    build: Callable[[], nn.Module]
    placements: Placements
    unused: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Module:
    """The class of a network: "package.module:Class", and its arguments from the shapes of the weights.

    finish: takes away from the new module what no file needs to hold.
    exact: parts of parameters' dotted names, of those that stay in float32 whatever the network computes in
        (norms that add 1 to their weights). configuration: the class that the arguments are of, where the
        network's takes an object of it."""

    path: str
    config: Callable[[Shapes], Config]
    finish: Callable[[nn.Module], None] = lambda module: None
    exact: tuple[str, ...] = ()
    configuration: str = ""

    def build(self, config: Config) -> nn.Module:
        """Imports the class's own file and makes it."""
        network = library_class(self.path)
        with warnings.catch_warnings():  # of what the library itself still calls
            warnings.simplefilter("ignore", FutureWarning)
            told = library_class(self.configuration)(**config) if self.configuration else None
            made: nn.Module = network(**config) if told is None else network(told)
        self.finish(made)
        return made


def number(name: str) -> Callable[[Config], int]:
    """An entry of a configuration that is a whole number."""
    return lambda config: cast(int, config[name])


def count_blocks(shapes: Shapes, pattern: str) -> int:
    """How many native names "blocks.{}.…" go on from 0."""
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownModel:
    """Compared and hashed by identity: each exists once.

    marks, unmarks: native names that its files hold, and that they do not. A file that has the marks of two
        is of the one with more, where those hold all the other's (`most_specific`). fits: what shapes must
        show beside (called when the marks are there).
    module: the class of the network. names: native ↔ module.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    module: Module
    names: NameMap
    unmarks: tuple[str, ...] = ()
    fits: Callable[[Shapes], bool] = lambda shapes: True

    def matches(self, shapes: Shapes) -> bool:
        """Whether weights of these native names and shapes are such a network."""
        if not all(mark in shapes for mark in self.marks) or any(mark in shapes for mark in self.unmarks):
            return False
        try:
            return self.fits(shapes)
        except (ModelFileError, LookupError, ValueError):
            return False  # tensors of unexpected dimensions are of none

    def regrouped(self, theirs: Shapes) -> tuple[Shapes, Regrouping] | None:
        """The native shapes of a file in the module's layout, whose names and shapes these are, and how its
        tensors make them up; None where it is no such file."""
        names = self.names.of_module(theirs) if theirs else None
        if names is None or not all(names.could_hold(mark, theirs) for mark in self.marks):
            return None
        regrouping = names.regrouping(theirs)
        shapes = {native: _joined_shape(theirs, pieces) for native, pieces in regrouping.items()}
        return (shapes, regrouping) if self.matches(shapes) else None

    def blueprint(self, shapes: Shapes) -> Blueprint:
        """The network for these shapes; ModelFileError where they do not make one."""
        with from_shapes(f"a {self.title} network"):
            if missing := [mark for mark in self.marks if mark not in shapes]:
                raise ModelFileError(
                    f"the weights do not make a {self.title} network: {missing[0]!r} is missing"
                )
            config = self.module.config(shapes)
            names = self.names.of_native(shapes)
            return Blueprint(
                config,
                lambda: self.module.build(config),
                names.placements(shapes),
                names.unused,
                self.module.exact,
            )


Found = TypeVar("Found", bound=KnownModel)


def most_specific(found: Iterable[Found]) -> list[Found]:
    """Those of the models that a file may be which no other of them knows by all the same marks and more."""
    found = list(found)
    return [one for one in found if not any(set(one.marks) < set(other.marks) for other in found)]


def _joined_shape(shapes: Shapes, pieces: tuple[tuple[str, Rows], ...]) -> tuple[int, ...]:
    """The shape of tensors, or of rows of them, one after the other."""
    if len(pieces) == 1 and pieces[0][1] is None:
        return shapes[pieces[0][0]]
    counts = (shapes[name][0] if rows is None else rows[1] - rows[0] for name, rows in pieces)
    return (sum(counts), *shapes[pieces[0][0]][1:])
