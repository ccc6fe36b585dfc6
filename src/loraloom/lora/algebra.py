"""What an algebra is: all that the package knows of it, as one object in one file of `lora/algorithms`.

The files are imported where torch is not loaded, because a LoRA's page needs names and shapes only. So they
import torch inside the functions that compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from loraloom.lora.component import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.lora.factored import Factored
    from loraloom.weights.patch import Factors

Shapes: TypeAlias = Mapping[str, Shape]
"""Role → shape of one module's tensors."""

Tensors: TypeAlias = "Mapping[str, Tensor]"
"""Role → tensor of one module."""

SHARED: Mapping[str, str] = MappingProxyType({".alpha": "alpha", ".scale": "gamma"})
"""Endings that belong to no algebra: what γ is told by."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """One module's tensors by role, as stored; the shape of the weight rows they are for; γ.

    comfyui: give ComfyUI v0.3.64's result where it differs from what the trainer meant.
    config: PEFT's config of the module, where there is one.
    """

    tensors: Tensors
    shape: Shape
    gamma: float
    comfyui: bool = False
    config: Mapping[str, object] = field(default_factory=lambda: dict[str, object]())

    def exact(self, role: str, like: Tensor | None = None) -> Tensor:
        """A tensor in float32, its shape kept, on the device of `like`."""
        import torch

        device = None if like is None else like.device
        return self.tensors[role].to(device, torch.float32)

    def matrix(self, role: str, like: Tensor | None = None) -> Tensor:
        """The same, flattened behind its first dimension."""
        return self.exact(role, like).flatten(1)


class Change(Protocol):
    """One algebra of one module, ready to be applied to float32 weights of its shape."""

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The changed weight; `weight` may be changed in place and returned."""
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """γΔ at strength 1, in fresh memory, for a weight that stays as it is."""
        ...

    def norm(self, weight: Callable[[], Tensor]) -> float:
        """‖γΔ‖ at strength 1; `weight` makes the weight for the algebras that need it."""
        ...

    def factors(self) -> Factors | None:
        """The change as down (r, in) and up (out, r), γ in it; None where it has no such form."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The tensors of one part of a fused layer, its γ, and the rows that it has there."""

    tensors: Tensors
    gamma: float
    begin: int
    end: int


class Algebra:
    """One algebra. A file of `lora/algorithms` extends this and ends in `ALGEBRA = ItsAlgebra()`.

    name: the file's name; title: what people call it, which receipts show.
    endings: ending of a tensor's name → the tensor's role. Of several endings of a role the first is written.
    needs, needs_on_bias: the roles, in words, that tell that it changes a module's weight, or its bias; each
        entry is an alternative.
    takes: further roles that belong to it; they change nothing alone.
    summands: Δ as a sum of products, each by the roles that multiply in it; () where it is no such sum.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    endings: ClassVar[Mapping[str, str]]
    needs: ClassVar[tuple[str, ...]] = ()
    needs_on_bias: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[str] = ""
    summands: ClassVar[tuple[str, ...]] = ()
    single: ClassVar[str] = ""
    """Roles, in words, of one value."""
    only_beside: ClassVar[Mapping[str, str]] = {}
    """Role → the role without which its tensor is nobody's."""
    peft: ClassVar[tuple[str, ...]] = ()
    """PEFT's parameters, behind whose names it may write the adapter's name."""
    scaled: ClassVar[bool] = False
    """Whether γ applies: alpha / `rank`."""
    in_parts: ClassVar[bool] = False
    """Whether kohya's numbered parts of a fused layer come in it: roles "up.0", "up.1", …"""
    wrapped: ClassVar[bool] = False
    """Whether a `Wrapper` may stand around it."""
    of_weight: ClassVar[bool] = False
    """Whether Δ depends on the weight's value: no file can hold it for every base."""
    in_comfyui: ClassVar[bool] = True
    """Whether ComfyUI v0.3.64 knows it."""

    def split(self, key: str) -> tuple[str, str] | None:
        """(module, role) of tensor names that `endings` cannot tell."""
        return None

    def alone(self, module: str, role: str) -> tuple[str, str] | None:
        """(module, role) of what another role means that is the only one of its module; None: itself."""
        return None

    def holds(self, shapes: Shapes) -> bool:
        """Whether shapes, too, speak for this algebra. shapes: all of the module's, the needed among them."""
        return True

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        """Why the tensors do not fit a weight of this shape; None where they do.

        Everything that `build` and its change rely on: applying cannot fail on shapes later."""
        raise NotImplementedError

    def inputs(self, shapes: Shapes) -> int | None:
        """Inputs of the linear layer that it was made for, where its tensors say that by themselves."""
        return None

    def rank(self, shapes: Shapes) -> int | None:
        """The rank that alpha is divided by; None where there is none."""
        return None

    def part_rows(self, shapes: Shapes) -> int:
        """Rows of a fused layer that one part has."""
        raise NotImplementedError

    def enlarged(self, shapes: Shapes, weight: Shape, *, control: bool) -> Shape:
        """The shape that the weight takes. control: the file may enlarge weights without a word about it."""
        return weight

    def build(self, given: Ingredients) -> Change:
        """The change, of tensors that fit. ModelFileError where their values are impossible."""
        raise NotImplementedError

    def is_zero(self, tensors: Tensors) -> bool:
        """Whether every product in Δ has a factor that is zero throughout."""
        return bool(self.summands) and all(
            any(role in tensors and not bool(tensors[role].float().any()) for role in product.split())
            for product in self.summands
        )

    def times(self, tensors: Tensors, factor: float) -> dict[str, Tensor]:
        """What to replace for Δ to be `factor` times as large: one tensor of each product, in float32."""
        roles = [next(role for role in product.split() if role in tensors) for product in self.summands]
        return {role: tensors[role].float() * factor for role in roles}

    def factored(self, tensors: Tensors, shape: Shape) -> Factored | None:
        """Δ without γ as factors, from float32 tensors; None where it has none smaller than the whole."""
        return None

    def unsaid(self, config: Mapping[str, object]) -> str | None:
        """What only PEFT's config can say of it, where that is not what readers without it assume."""
        return None

    def written(self, tensors: Tensors) -> dict[str, Tensor]:
        """Tensors by the ending under which they are written."""
        endings = {role: ending for ending, role in reversed([*self.endings.items(), *SHARED.items()])}
        return {endings[role]: tensor for role, tensor in tensors.items()}

    def in_diffusers(self, tensors: Tensors, gamma: float) -> dict[str, Tensor] | None:
        """The same in diffusers' dialect, which has no alpha; None where that has no endings of its own."""
        return None

    def is_by_rows(self, tensors: Tensors) -> bool:
        """Whether the change of some rows is a module of the same kind: `rows` and `joined` work."""
        return False

    def rows(self, tensors: Tensors, spans: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The change of these rows (first, one past the last) of the weight, in this order."""
        raise NotImplementedError

    def joined(self, parts: Sequence[Part], rows: int) -> dict[str, Tensor]:
        """The parts of a fused layer of so many rows as one module, with the γ of the first part."""
        raise NotImplementedError


class Wrapper:
    """What stands around another algebra's change and takes it as a direction: DoRA.

    A file of `lora/algorithms` extends this and ends in `ALGEBRA = ItsWrapper()`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    endings: ClassVar[Mapping[str, str]]
    peft: ClassVar[tuple[str, ...]] = ()

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        """Why its tensors do not fit a weight of this shape; None where they do."""
        raise NotImplementedError

    def wrap(self, direction: Change, given: Ingredients) -> Change:
        """The change of the direction with what stands around it."""
        raise NotImplementedError

    def written(self, tensors: Tensors, dimensions: int, *, peft: bool) -> dict[str, Tensor]:
        """Tensors by ending. dimensions: of the weight; peft: the direction is written by PEFT's endings."""
        raise NotImplementedError
