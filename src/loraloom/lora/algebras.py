"""Every algebra there is, and which of them a module's tensors belong to. No torch.

The folder `lora/algorithms` is the registry: each of its files ends in `ALGEBRA`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TypeAlias, TypeVar

from loraloom.lora.algebra import SHARED, Algebra, Change, Ingredients, Shapes, Wrapper
from loraloom.lora.component import Shape

ALGORITHMS = "loraloom.lora.algorithms"

Endings: TypeAlias = "tuple[tuple[str, str], ...]"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Registry:
    """Algebras and wrappers by name, and what follows from all of them together.

    endings: (ending, role), the longest first. only_beside: see `Algebra`.
    bound: roles that change nothing alone.
    adapter: PEFT's parameter and the adapter's name behind it, at the end of a tensor's name.
    """

    algebras: Mapping[str, Algebra]
    wrappers: Mapping[str, Wrapper]
    endings: Endings
    only_beside: Mapping[str, str]
    bound: frozenset[str]
    adapter: re.Pattern[str]


@lru_cache(maxsize=1)
def registry() -> Registry:
    """What the files of `lora/algorithms` define. ValueError where two share a name or an ending."""
    package = importlib.import_module(ALGORITHMS)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return registry_of(importlib.import_module(f"{ALGORITHMS}.{name}").ALGEBRA for name in names)


def registry_of(found: Iterable[Algebra | Wrapper]) -> Registry:
    """A registry of these. ValueError as above."""
    known: dict[str, Algebra | Wrapper] = {}
    for one in found:
        if (other := known.setdefault(one.name, one)) is not one:
            raise ValueError(f"two algebras are called {one.name!r}: {type(other)} and {type(one)}")
    algebras = {name: one for name, one in known.items() if isinstance(one, Algebra)}
    wrappers = {name: one for name, one in known.items() if isinstance(one, Wrapper)}
    endings = dict(SHARED)
    for one in known.values():
        for ending, role in one.endings.items():
            if endings.setdefault(ending, role) != role:
                raise ValueError(f"{ending!r} is {endings[ending]!r} and, in {one.name!r}, {role!r}")
    needed = " ".join(chain.from_iterable((*a.needs, *a.needs_on_bias) for a in algebras.values())).split()
    bound = {role for a in algebras.values() for role in a.takes.split()} - set(needed)
    return Registry(
        algebras,
        wrappers,
        tuple(sorted(endings.items(), key=lambda item: -len(item[0]))),
        {role: other for a in algebras.values() for role, other in a.only_beside.items()},
        frozenset(bound.union(*(w.endings.values() for w in wrappers.values()))),
        _adapter([name for one in known.values() for name in one.peft], endings),
    )


def _adapter(parameters: list[str], endings: Iterable[str]) -> re.Pattern[str]:
    """What follows a parameter's name in an ending of its own is no adapter's name."""
    own = {
        ending.removeprefix(f".{name}.")
        for ending in endings
        for name in parameters
        if ending.startswith(f".{name}.")
    }
    names, others = "|".join(map(re.escape, parameters)), "|".join(map(re.escape, {*own, "weight", "bias"}))
    return re.compile(rf"\.({names})\.(?!(?:{others})$)([^.]+)(\.weight|\.bias)?$")


@dataclass(frozen=True, slots=True)
class Found:
    """An algebra found in a module, and the roles it uses. part: the n-th part of a fused layer."""

    algebra: Algebra
    roles: tuple[str, ...]
    on_bias: bool = False
    part: int | None = None
    wrapper: Wrapper | None = None

    @property
    def label(self) -> str:
        """ "lora", "dora on lora"."""
        return f"{self.wrapper.name} on {self.algebra.name}" if self.wrapper else self.algebra.name

    @property
    def is_plain(self) -> bool:
        """Whether the algebra is all there is to it."""
        return self.wrapper is None and self.part is None

    @property
    def of_weight(self) -> bool:
        """Whether the change depends on the weight's value."""
        return self.algebra.of_weight or self.wrapper is not None

    def pick(self, by_role: Mapping[str, T]) -> dict[str, T]:
        """What is its own, with the number of a part off the roles."""
        return {role.split(".")[0]: by_role[role] for role in self.roles if role in by_role}

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        """Why the tensors do not fit a weight of this shape; None where they do."""
        problem = self.algebra.misfit(shapes, weight)
        return problem if problem or self.wrapper is None else self.wrapper.misfit(shapes, weight)

    def change(self, given: Ingredients) -> Change:
        """The change, of tensors that fit. ModelFileError where their values are impossible."""
        change = self.algebra.build(given)
        return change if self.wrapper is None else self.wrapper.wrap(change, given)


def algebra_title(label: str) -> str:
    """What people call it: "DoRA on LoRA" of "dora on lora"; what is no label stays as it is."""
    known = {**registry().algebras, **registry().wrappers}
    return " on ".join(known[name].title if name in known else name for name in label.split(" on "))


def recognise(shapes: Shapes) -> tuple[tuple[Found, ...], tuple[str, ...]]:
    """The algebras of a module, from role → shape, and the roles that none of them uses.

    One changes the weight, that which explains the most tensors; each that names the bias changes the bias.
    """
    on_weight = _parts(shapes)
    on_bias: list[Found] = []
    candidates: list[Found] = []
    for algebra in registry().algebras.values():
        for needs, found in ((algebra.needs, candidates), (algebra.needs_on_bias, on_bias)):
            needed = next((set(need.split()) for need in needs if shapes.keys() >= set(need.split())), None)
            if needed is not None and algebra.holds(shapes):
                found.append(_found(algebra, needed, shapes, on_bias=found is on_bias))
    if not on_weight and candidates:
        on_weight = [max(candidates, key=lambda one: len(one.roles))]
    found = (*on_weight, *on_bias)
    return found, tuple(sorted(shapes.keys() - {role for one in found for role in one.roles}))


def _found(algebra: Algebra, needed: set[str], shapes: Shapes, *, on_bias: bool) -> Found:
    roles = needed | (set(algebra.takes.split()) & shapes.keys())
    for wrapper in registry().wrappers.values() if algebra.wrapped else ():
        if around := set(wrapper.endings.values()) & shapes.keys():
            return Found(algebra, tuple(sorted(roles | around)), on_bias, wrapper=wrapper)
    return Found(algebra, tuple(sorted(roles)), on_bias)


def _parts(shapes: Shapes) -> list[Found]:
    """The numbered parts of a fused layer, with the scale that they share."""
    numbers = sorted({int(role.split(".", 1)[1]) for role in shapes if "." in role})
    found: list[Found] = []
    for number in numbers:
        for algebra in registry().algebras.values():
            roles = {f"{role}.{number}" for need in algebra.needs for role in need.split()}
            if algebra.in_parts and shapes.keys() >= roles:
                scale = set(SHARED.values()) & set(algebra.takes.split()) & shapes.keys()
                found.append(Found(algebra, tuple(sorted(roles | scale)), part=number))
                break
    return found


def incomplete(roles: tuple[str, ...]) -> str:
    """What to say of a module whose tensors make no algebra."""
    main = [role for role in roles if role not in registry().bound]
    if not main:
        return f"holds only {', '.join(roles)}: the tensors that it belongs to are missing"
    needs = (set(need.split()) for a in registry().algebras.values() for need in (*a.needs, *a.needs_on_bias))
    missing = sorted(min((need - set(roles) for need in needs if need & set(main)), key=len, default=()))
    without = f" without {', '.join(missing)}" if missing else ""
    return f"has {', '.join(main)}{without}, which is no complete algebra: the file was cut or edited"
