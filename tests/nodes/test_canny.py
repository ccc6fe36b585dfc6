"""Edges, against kornia 0.9.0's Canny, which ComfyUI's node calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.nodes.canny import canny

FIGURES = {
    (0.4, 0.8): "01001020 02002040 02006040 0600c0c0 0c014180 1803b300 e0060c00 00081000 00106003 0060800c"
    " 01818030 030f0064 060c00c4 0c180186 18300304 3060060c 20c00c18 61801830 03007260 0400c180 18010200"
    " e01e0c00 00380800 00200000",
    (0.3, 0.99): "01001020 02002040 02006040 0600c0c0 0c014180 1803b300 e0060c00 00081000 00106003 0060800c"
    " 01818030 030f0064 060c00c4 0c180186 18300304 3060060c 20c00c18 61801830 03007260 0400c180 18010200"
    " e01e0c00 00381800 00200000",
    (0.9, 0.95): "01001020 02002040 02006040 0600c0c0 0c004180 18000300 e0000c00 00000000 00000000 00400008"
    " 01800030 03000060 060c00c0 0c180184 18300304 3060060c 20c00c18 01800030 03000060 04000080 00000000"
    " 00000000 00000000 00000000",
}
"""Thresholds → the edges of `waves`, 32 pixels a row as bits."""


def waves() -> Tensor:
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    channels = [0.5 + 0.5 * torch.sin(x / 3 + y / 7 + s) * torch.cos(y / 4 - s) for s in (0.0, 0.5, 1.2)]
    return torch.stack(channels, -1)[None] ** 2


def bits(edges: Tensor) -> str:
    rows = ["".join(str(int(value)) for value in row) for row in edges[0, ..., 0]]
    return " ".join(f"{int(row, 2):08x}" for row in rows)


@pytest.mark.parametrize("thresholds", FIGURES)
def test_edges_equal_the_reference(thresholds: tuple[float, float]) -> None:
    found = canny(waves(), *thresholds)
    assert found.shape == (1, 24, 32, 3) and set(found.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found[..., 0], found[..., 2])
    assert bits(found) == FIGURES[thresholds]


def test_a_step_keeps_one_line_of_two() -> None:
    picture = torch.zeros(2, 24, 32, 4)
    picture[1, 6:15, 8:20] = 1
    found = canny(picture)
    assert found[0].count_nonzero() == 0
    lines = found[1, ..., 0]
    assert lines[10].sum() == lines[:, 14].sum() == 2
    assert lines[5:16, 7:21].sum() == lines.sum() > 30


def test_thresholds_in_the_wrong_order_are_named() -> None:
    with pytest.raises(InputError, match="exchange"):
        canny(waves(), 0.8, 0.4)
