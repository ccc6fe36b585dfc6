"""Changes as products of factors, and several such products side by side as one. Exact, nothing is fitted.

LoRA     ΔW = up · down                      side by side: [up₁ up₂] · [down₁; down₂]
Tucker   ΔW = up ×₁ core ×₂ down             side by side: the cores on a diagonal
LoHa     (a·b) ⊙ (c·d) = Σₚ𝑞 (aₚ ⊙ c𝑞)(bₚ ⊙ d𝑞)ᵀ: a product of rank p · q
LoKr     w1 ⊗ (x·y) = (w1 ⊗ x)(1 ⊗ y): a product of w1's columns times the rank of w2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraloom.lora.component import Shape

Tensors = Mapping[str, Tensor]


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
        return self if self.core is None else Factored(self.up, _through(self.core, self.down))

    def whole(self, shape: Shape) -> Tensor:
        plain = self.plain()
        return (plain.up @ plain.down).view(shape)

    def scaled(self, factor: float) -> Factored:
        return replace(self, up=self.up * factor)


def factored(kind: str, tensors: Tensors, shape: Shape) -> Factored | None:
    """The change of an algebra, unscaled, as factors; None where it has none that are smaller than the whole.

    tensors: by role, float32. A plain LoRA always has factors.
    """
    if kind == "lora":
        up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
        if "mid" not in tensors:
            return Factored(up, down)
        core = tensors["mid"]
        return Factored(up, down, core.reshape(*core.shape[:2], *shape[2:]))
    make = _PRODUCTS.get(kind)
    found = None if make is None else make(tensors)
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    return found if found is not None and found.rank * (rows + columns) < rows * columns else None


def side_by_side(changes: Sequence[Factored]) -> Factored:
    """The sum of several changes of one weight: all cores on one diagonal, or all without cores."""
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


def _through(core: Tensor, down: Tensor) -> Tensor:
    """Core (p, q, kernel…) and down (q, in) as one matrix (p, in · kernel)."""
    return torch.einsum("p q ..., q i -> p i ...", core, down).flatten(1)


def _hadamard(tensors: Tensors) -> Factored:
    pairs: list[tuple[Tensor, Tensor]] = []
    for index in "12":
        a, b = tensors[f"hada_w{index}_a"], tensors[f"hada_w{index}_b"]
        core = tensors.get(f"hada_t{index}")
        pairs.append((a, b) if core is None else (a.T, _through(core, b)))
    (a, b), (c, d) = pairs
    return Factored((a[:, :, None] * c[:, None, :]).flatten(1), (b[:, None] * d[None]).flatten(0, 1))


def _kronecker(tensors: Tensors) -> Factored | None:
    if "lokr_w2" in tensors:
        return None  # nearly always of full rank
    core = tensors.get("lokr_t2")
    x, y = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
    x, y = (x, y.flatten(1)) if core is None else (x.T, _through(core, y))
    if "lokr_w1" in tensors:
        first = tensors["lokr_w1"]
        return Factored(torch.kron(first, x.contiguous()), torch.kron(torch.eye(first.shape[1]), y))
    return Factored(
        torch.kron(tensors["lokr_w1_a"], x.contiguous()), torch.kron(tensors["lokr_w1_b"], y.contiguous())
    )


_PRODUCTS: Mapping[str, Callable[[Tensors], Factored | None]] = {"loha": _hadamard, "lokr": _kronecker}
