"""Best low-rank forms of matrices, with the share of ‖ΔW‖² that they keep. Nothing is clamped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.factored import Factored

EXACT_SIDE = 1024
"""Smaller side up to which a matrix is decomposed exactly; beyond it, a randomised method finds the ranks
asked for (Halko, Martinsson and Tropp 2011)."""

OVERSAMPLING = 16
ITERATIONS = 4


@dataclass(frozen=True, slots=True)
class LowRankForm:
    """up (out, r) and down (r, in), singular values split evenly; the energy kept and that of the whole."""

    up: Tensor
    down: Tensor
    kept: float
    total: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def factors(self) -> Factored:
        return Factored(self.up, self.down)


def check_size(rank: int | None, energy: float | None) -> None:
    """InputError unless rank and energy make sense."""
    if rank is not None and rank < 1:
        raise InputError(f"rank {rank}: expected 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy {energy}: expected a share between 0 and 1, such as 0.99")


def reduce_matrix(matrix: Tensor, rank: int | None, energy: float | None) -> LowRankForm:
    """The best approximation of a matrix with at most `rank` ranks, or as few as keep `energy` of it."""
    matrix = matrix.to(torch.float32)
    total = float(torch.linalg.vector_norm(matrix.double()) ** 2)
    side = min(matrix.shape)
    if side <= EXACT_SIDE or rank is None or rank + OVERSAMPLING >= side // 2:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        left, values, rows = torch.svd_lowrank(matrix, q=rank + OVERSAMPLING, niter=ITERATIONS)
        right = rows.T
    return _cut(left, values, right, rank, energy, total)


def reduce_product(up: Tensor, down: Tensor, rank: int | None, energy: float | None) -> LowRankForm:
    """The same for a product of factors, decomposed without forming the whole."""
    left, upper = torch.linalg.qr(up.to(torch.float32))
    right, lower = torch.linalg.qr(down.to(torch.float32).T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T)
    total = float((values.double() ** 2).sum())
    return _cut(left @ inner_left, values, inner_right @ right.T, rank, energy, total)


def _cut(
    left: Tensor, values: Tensor, right: Tensor, rank: int | None, energy: float | None, total: float
) -> LowRankForm:
    squares = values.double() ** 2
    used = int((values > values.max() * 1e-7).sum()) if values.numel() and float(values.max()) > 0 else 1
    count = max(1, min(used, rank if rank is not None else used))
    if energy is not None and total > 0:
        enough = int((torch.cumsum(squares, 0) < energy * total * (1 - 1e-9)).sum()) + 1
        count = max(1, min(count, enough))
    root = values[:count].sqrt()
    kept = min(float(squares[:count].sum()), total)
    return LowRankForm(left[:, :count] * root, root[:, None] * right[:count], kept, total)
