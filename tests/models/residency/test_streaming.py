"""Which layers take turns, and what of them is kept pinned for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from loraloom.models.residency.streaming import Streaming, Unit


class Written:
    """Weights that note what is asked of them."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.pinned: set[str] = set()

    def fill(self, natives: Iterable[str]) -> None:
        self.there |= {*natives}

    def empty(self, natives: Iterable[str]) -> None:
        self.there -= {*natives}

    def pin(self, natives: Iterable[str]) -> None:
        self.pinned |= {*natives}

    def unpin(self) -> None:
        self.pinned.clear()


def test_nothing_stays_pinned_once_everything_stays_on_the_device() -> None:
    weights, names = Written(), [f"layer {number}" for number in range(8)]
    units = [Unit((name,), (nn.Identity(),), 100) for name in names]
    streaming = Streaming(units, 50, weights, torch.device("cpu"))
    assert streaming.fit(450)
    moving = {native for unit in streaming.moving for native in unit.natives}
    assert weights.pinned == moving and weights.there == {*names} - moving
    assert streaming.fit(850)
    assert not weights.pinned and weights.there == {*names}
    assert streaming.fit(450)
    assert weights.pinned == moving
    streaming.close()
