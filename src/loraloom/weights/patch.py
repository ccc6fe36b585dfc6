"""What may change a weight, as the weights see it.

`weights` rebuilds parameters and knows nothing of LoRA files; `lora` writes patches and knows nothing of
modules or memory. This protocol is where they meet. All names are *native*: the names that the family's
original checkpoint file uses, without the file's prefix ("input_blocks.1.1.proj_in.weight").
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:  # names and tables are used where torch is not loaded
    from torch import Tensor

Rows: TypeAlias = "tuple[int, int] | None"
"""First and one-past-last row (dimension 0) of a native weight that something is about; None: all."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a LoRA's module lives: a native weight or bias, and the rows of it when the weight is fused.

    swapped: the module that the LoRA names holds the two halves of these rows in the other order
        (Flux.1: scale and shift of the last layer), so its change is to be swapped before it is added.
    """

    weight: str
    rows: Rows = None
    swapped: bool = False


NameTable: TypeAlias = Mapping[str, Target]
"""Module name as a LoRA file may spell it, without tensor suffix → where it goes."""


@dataclass(frozen=True, slots=True)
class Factors:
    """A patch as y += strength · B(A x): down (r, in) and up (out, r) hold alpha and rank already. For a
    convolution, A has its kernel: down is (r, in · kernel)."""

    down: Tensor
    up: Tensor


class Patch(Protocol):
    """One change of one native weight.

    signature: hashable identity of the content (not of the strength); equal signatures, equal effect.
    rows: the rows that it changes.
    """

    @property
    def signature(self) -> Hashable: ...
    @property
    def rows(self) -> Rows: ...

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The changed rows, float32, from `weight`: those rows as they are so far, float32. May change
        `weight` in place and return it. A larger shape than that of `weight` enlarges the parameter."""
        ...

    def factors(self) -> Factors | None:
        """The patch in factored form for use without merging; None where the algebra has no such form."""
        ...


PatchSet: TypeAlias = Mapping[str, Sequence[Patch]]
"""Native weight name → its patches, in the order of application."""


class PatchSource(Protocol):
    """A LoRA as a network sees it. Equal digests, equal patches."""

    @property
    def digest(self) -> str: ...

    def patches(self) -> PatchSet: ...


@dataclass(frozen=True, slots=True)
class PatchUse:
    """One LoRA at one strength: an element of a model's stack."""

    source: PatchSource
    strength: float

    @property
    def signature(self) -> Hashable:
        return (self.source.digest, self.strength)


Stack: TypeAlias = "tuple[PatchUse, ...]"
