"""Changes as products of factors, and several such products side by side as one. Exact, nothing is fitted.

LoRA     ΔW = up · down                      side by side: [up₁ up₂] · [down₁; down₂]
Tucker   ΔW = up ×₁ core ×₂ down             side by side: the cores on a diagonal
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.component import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Factored:
    """up (out, p) · down (p, columns), or with a Tucker core (p, q, kernel…) between up and down (q, in).

    Columns are a weight's, flattened behind its first dimension. Float32; scale and strength are in `up`.
    """

    up: Tensor
    down: Tensor
    core: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    def plain(self) -> Factored:
        """The same product without a core, which goes into `down`."""
        return self if self.core is None else Factored(self.up, through(self.core, self.down))

    def whole(self, shape: Shape) -> Tensor:
        plain = self.plain()
        return (plain.up @ plain.down).view(shape)

    def scaled(self, factor: float) -> Factored:
        return replace(self, up=self.up * factor)

    def if_smaller(self, shape: Shape) -> Factored | None:
        """Itself where its factors are smaller than the whole of that shape."""
        rows, columns = shape[0], prod(shape[1:])
        return self if self.rank * (rows + columns) < rows * columns else None


def side_by_side(changes: Sequence[Factored]) -> Factored:
    """The sum of several changes of one weight: all cores on one diagonal, or all without cores."""
    import torch

    cores = [change.core for change in changes]
    if any(core is None for core in cores):
        changes, core = [change.plain() for change in changes], None
    else:
        core = _diagonal([core for core in cores if core is not None])
    up = torch.cat([change.up for change in changes], 1)
    return Factored(up, torch.cat([change.down for change in changes]), core)


def _diagonal(cores: Sequence[Tensor]) -> Tensor:
    rows, columns = sum(core.shape[0] for core in cores), sum(core.shape[1] for core in cores)
    joined = cores[0].new_zeros(rows, columns, *cores[0].shape[2:])
    row = column = 0
    for core in cores:
        joined[row : row + core.shape[0], column : column + core.shape[1]] = core
        row, column = row + core.shape[0], column + core.shape[1]
    return joined


def lycoris_product(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Core (p, q, kernel…) between a (p, out) and b (q, in), as LyCORIS contracts it: (out, in · kernel)."""
    import torch

    inner = torch.einsum("i j ..., j r -> i r ...", core, b)
    return torch.einsum("i r ..., i p -> p r ...", inner, a).flatten(1)


def through(core: Tensor, down: Tensor) -> Tensor:
    """Core (p, q, kernel…) and down (q, in) as one matrix (p, in · kernel)."""
    import torch

    return torch.einsum("p q ..., q i -> p i ...", core, down).flatten(1)
