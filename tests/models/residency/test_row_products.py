"""Products of factors for batches whose parts carry different ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loraloom.models.residency.row_products import RowFactors, Work, row_products

BROKEN = {"down": float("nan"), "up": float("inf")}


def linear(strengths: list[float], broken: str = "", largest: float = 1.0) -> torch.Tensor:
    """What each of as many rows gets, of a value that is not finite or very large in the factors."""
    generator = torch.Generator().manual_seed(1)
    factors = RowFactors(
        torch.randn(2, 4, generator=generator), torch.randn(3, 2, generator=generator), strengths
    )
    if broken:
        getattr(factors, broken)[0, 0] = BROKEN[broken]
    factors.down *= largest
    (product,) = row_products([factors], len(strengths), Work())
    return product(nn.Linear(4, 3), torch.ones(len(strengths), 5, 4))


@pytest.mark.parametrize("broken", ["down", "up"])
def test_what_is_not_finite_stays_with_the_rows_that_have_it(broken: str) -> None:
    """Also where most rows have it, and it would be multiplied with the whole batch."""
    found = linear([1.0, 0.5, 0.0], broken)
    assert found[2].eq(0).all()
    assert not found[0].isfinite().all() and not found[1].isfinite().all()


def test_what_overflows_stays_with_the_rows_that_have_it() -> None:
    found = linear([1.0, 0.5, 0.0], largest=3e38)
    assert found[2].eq(0).all() and not found[0].isfinite().all()


def test_a_convolutions_kernels_that_are_not_finite_stay_too() -> None:
    factors = RowFactors(torch.full((2, 4 * 9), float("nan")), torch.ones(3, 2), [1.0, 1.0, 0.0])
    (product,) = row_products([factors], 3, Work())
    found = product(nn.Conv2d(4, 3, 3, padding=1), torch.ones(3, 4, 6, 6))
    assert found[2].eq(0).all() and found[0].isnan().all()
