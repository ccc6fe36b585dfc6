"""Every algebra there is, and which of them a module's tensors belong to. No torch.

The folder `lora/algorithms` is the registry: each of its files ends in `ALGEBRA`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeAlias, TypeVar

from loraloom.lora.algebra import SHARED, Algebra, Change, Ingredients, Shapes, Wrapper
from loraloom.lora.component import Shape

ALGORITHMS = "loraloom.lora.algorithms"

Form: TypeAlias = tuple[Algebra, bool, tuple[frozenset[str], ...]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Registry:
    """Algebras and wrappers by name, and what follows from all of them together.

    forms: each algebra, whether on the bias, and the sets of roles that tell it, one of which is enough.
    endings: (ending, role), the longest first. splits, only_beside: see `Algebra`.
    bound: roles that change nothing alone.
    adapter: PEFT's parameter and the adapter's name behind it, at the end of a tensor's name.
    """

    algebras: Mapping[str, Algebra]
    wrappers: Mapping[str, Wrapper]
    forms: tuple[Form, ...]
    endings: tuple[tuple[str, str], ...]
    splits: tuple[Callable[[str], tuple[str, str] | None], ...]
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
    forms = tuple(
        (algebra, on_bias, tuple(frozenset(need.split()) for need in needs))
        for algebra in algebras.values()
        for on_bias, needs in ((False, algebra.needs), (True, algebra.needs_on_bias))
        if needs
    )
    needed = {role for _, _, needs in forms for need in needs for role in need}
    bound = {role for a in algebras.values() for role in a.takes.split()} - needed
    return Registry(
        algebras,
        wrappers,
        forms,
        tuple(sorted(endings.items(), key=lambda item: -len(item[0]))),
        tuple(one.split for one in algebras.values() if type(one).split is not Algebra.split),
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
        for role in (*SHARED.values(), *self.algebra.single.split()):
            if role in shapes and prod(shapes[role]) != 1:
                return f"its {role} has {prod(shapes[role])} values; expected one"
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
    roles = frozenset(shapes)
    whole: list[Found] = []
    for algebra, on_bias, needs in registry().forms:
        needed = next((need for need in needs if need <= roles), None)
        if needed is not None and algebra.holds(shapes):
            whole.append(_found(algebra, needed, roles, on_bias=on_bias))
    on_weight = _parts(shapes)
    if not on_weight and (candidates := [one for one in whole if not one.on_bias]):
        on_weight = [max(candidates, key=lambda one: len(one.roles))]
    found = (*on_weight, *(one for one in whole if one.on_bias))
    return found, tuple(sorted(roles.difference(*(one.roles for one in found))))


def _found(algebra: Algebra, needed: frozenset[str], roles: frozenset[str], *, on_bias: bool) -> Found:
    used = needed | roles.intersection(algebra.takes.split())
    for wrapper in registry().wrappers.values() if algebra.wrapped else ():
        if around := roles.intersection(wrapper.endings.values()):
            return Found(algebra, tuple(sorted(used | around)), on_bias, wrapper=wrapper)
    return Found(algebra, tuple(sorted(used)), on_bias)


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
    needs = [need for _, _, alternatives in registry().forms for need in alternatives]
    missing = sorted(min((need - set(roles) for need in needs if need & set(main)), key=len, default=()))
    without = f" without {', '.join(missing)}" if missing else ""
    return f"has {', '.join(main)}{without}, which is no complete algebra: the file was cut or edited"
