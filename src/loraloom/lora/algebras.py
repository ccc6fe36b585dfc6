"""Which algebra a module's tensors belong to, told from their roles alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from loraloom.lora.component import Shape
from loraloom.lora.tensor_names import SIDE_TENSORS


@dataclass(frozen=True, slots=True)
class Algebra:
    """One algebra's tensors. needs: roles that must be there (alternatives as sets); takes: those it may use.

    on_bias: it changes the module's bias instead of its weight. scaled: alpha applies to it.
    """

    kind: str
    needs: tuple[frozenset[str], ...]
    takes: frozenset[str] = frozenset()
    on_bias: bool = False
    scaled: bool = False
    dimensions: int | None = None


def _algebra(kind: str, *needs: str, takes: str = "", **options: bool | int) -> Algebra:
    alternatives = tuple(frozenset(need.split()) for need in needs)
    on_bias, scaled = bool(options.get("on_bias")), bool(options.get("scaled"))
    dimensions = options.get("dimensions")
    return Algebra(kind, alternatives, frozenset(takes.split()), on_bias, scaled, dimensions)


DECOMPOSED = "dora magnitude"
ALGEBRAS: tuple[Algebra, ...] = (
    _algebra("lora", "up down", takes=f"mid alpha gamma reshape_weight {DECOMPOSED}", scaled=True),
    _algebra(
        "loha",
        "hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        takes=f"hada_t1 hada_t2 alpha gamma {DECOMPOSED}",
        scaled=True,
    ),
    *(
        _algebra("lokr", f"{first} {second}", takes=f"lokr_t2 alpha gamma {DECOMPOSED}", scaled=True)
        for first in ("lokr_w1", "lokr_w1_a lokr_w1_b")
        for second in ("lokr_w2", "lokr_w2_a lokr_w2_b")
    ),
    _algebra("glora", "a1 a2 b1 b2", takes="bm alpha gamma", scaled=True),
    _algebra("boft", "oft_blocks", takes="rescale alpha", dimensions=4),
    _algebra("oft", "oft_blocks", takes="rescale alpha"),
    _algebra("oftv2", "oft_r", takes="scaled_oft alpha gamma"),
    _algebra("boft_input", "boft_r", takes="boft_s alpha"),
    _algebra("ia3", "weight on_input", "ia3", takes="alpha"),
    _algebra("full", "diff", takes="alpha gamma"),
    _algebra("norm", "w_norm", takes="alpha gamma"),
    _algebra("set", "set_weight", takes="alpha"),
    _algebra("full", "diff_b", on_bias=True, takes="alpha gamma"),
    _algebra("norm", "b_norm", on_bias=True, takes="alpha gamma"),
    _algebra("sparse", "bias_indices bias_values bias_size", on_bias=True, takes="alpha"),
    _algebra("bias", "up_bias", on_bias=True, takes="alpha gamma down", scaled=True),
)
"""Every algebra; several may hold for one module (a weight's and its bias's)."""


@dataclass(frozen=True, slots=True)
class Found:
    """An algebra found in a module: its kind and the roles it uses. part: the n-th part of a fused layer."""

    kind: str
    roles: tuple[str, ...]
    on_bias: bool
    scaled: bool
    part: int | None = None


def recognise(shapes: Mapping[str, Shape]) -> tuple[tuple[Found, ...], tuple[str, ...]]:
    """The algebras of a module, from role → shape, and the roles that none of them uses."""
    roles = set(shapes)
    numbered = sorted({int(role.split(".", 1)[1]) for role in roles if "." in role})
    found: list[Found] = []
    used: set[str] = set()
    for part in numbered:
        pair = (f"up.{part}", f"down.{part}")
        if roles.issuperset(pair):
            rest = tuple(sorted(roles & {"alpha", "gamma"}))
            found.append(Found("lora", pair + rest, False, True, part))
            used.update(pair, rest)
        elif (blocks := f"oft_blocks.{part}") in roles:
            rest = tuple(sorted(roles & {"alpha"}))
            found.append(Found("oft", (blocks, *rest), False, False, part))
            used.update((blocks,), rest)
    weight_done = bool(found)
    for algebra in ALGEBRAS:
        if weight_done and not algebra.on_bias:
            continue
        needed = next((need for need in algebra.needs if need <= roles), None)
        if needed is None or not _fits_dimensions(algebra, needed, shapes):
            continue
        taken = tuple(sorted(needed | (algebra.takes & roles)))
        found.append(Found(algebra.kind, taken, algebra.on_bias, algebra.scaled))
        used.update(taken)
        weight_done = weight_done or not algebra.on_bias
    if not found:
        return (), tuple(sorted(roles))
    return tuple(found), tuple(sorted(roles - used))


def _fits_dimensions(algebra: Algebra, needed: Set[str], shapes: Mapping[str, Shape]) -> bool:
    return algebra.dimensions is None or all(len(shapes[role]) == algebra.dimensions for role in needed)


def incomplete(roles: tuple[str, ...]) -> str:
    """What to say of a module whose tensors make no algebra."""
    main = [role for role in roles if role not in SIDE_TENSORS]
    if not main:
        return f"holds only {', '.join(roles)}: the tensors that it belongs to are missing"
    partners = {"up": "down", "down": "up"}
    missing = [partners[role] for role in main if role in partners and partners[role] not in roles]
    if missing:
        return f"has {', '.join(main)} without {', '.join(missing)}: the file was cut or edited"
    return f"has {', '.join(roles)}, which is no complete algebra: the file was cut or edited"
