"""Mask nodes on values."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import InputError
from loraloom.nodes import masks

HALF = torch.tensor([[[0.0, 0.25], [0.75, 1.0]]])


def test_masks_and_pictures() -> None:
    image = masks.mask_to_image(HALF[0])
    assert image.shape == (1, 2, 2, 3)
    assert torch.equal(masks.image_to_mask(image, "blue"), HALF)
    with pytest.raises(InputError, match="no alpha channel"):
        masks.image_to_mask(image, "alpha")
    red = torch.tensor([[[[1.0, 0.0, 0.0], [0.99, 0.0, 0.0]]]])
    assert masks.color_to_mask(red, 0xFF0000)[0].tolist() == [[1.0, 0.0]]


def test_values() -> None:
    assert torch.equal(masks.solid_mask(0.5, 3, 2), torch.full((1, 2, 3), 0.5))
    assert torch.equal(masks.invert_mask(HALF), 1 - HALF)
    assert masks.threshold_mask(HALF, 0.75)[0].tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert masks.crop_mask(HALF, 1, 0, 5, 1).tolist() == [[[0.25]]]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("multiply", [0.0, 0.125, 0.375, 0.5]),
        ("add", [0.5, 0.75, 1.0, 1.0]),
        ("subtract", [0.0, 0.0, 0.25, 0.5]),
        ("and", [0.0, 0.0, 0.0, 0.0]),
        ("or", [0.0, 0.0, 1.0, 1.0]),
        ("xor", [0.0, 0.0, 1.0, 1.0]),
    ],
)
def test_joining(operation: str, expected: list[float]) -> None:
    joined = masks.composite_masks(
        destination=HALF, source=torch.full((1, 9, 9), 0.5), x=0, y=0, operation=operation
    )
    assert joined.flatten().tolist() == expected
    untouched = masks.composite_masks(destination=HALF, source=HALF, x=5, y=5, operation=operation)
    assert torch.equal(untouched, HALF)


def test_feathering_as_comfyui_counts() -> None:
    ones = torch.ones(1, 1, 8)
    assert masks.feather_mask(ones, 2)[0, 0].tolist() == [0.5, 1, 1, 1, 1, 1, 1, 1]
    assert masks.feather_mask(ones, 0, 0, 4)[0, 0].tolist() == [0.25, 1, 1, 1, 1, 1.0, 0.75, 0.5]


def test_growing_and_shrinking() -> None:
    dot = torch.zeros(1, 5, 5)
    dot[0, 2, 2] = 1
    assert masks.grow_mask(dot, 1).sum() == 5
    assert masks.grow_mask(dot, 1, False).sum() == 9
    assert torch.equal(masks.grow_mask(masks.grow_mask(dot, 1), -1), dot)
    assert masks.grow_mask(dot, 16384).min() == 1


def test_pasting_pictures() -> None:
    below, above = torch.zeros(1, 4, 4, 3), torch.ones(1, 2, 2, 4)
    pasted = masks.composite_images(below, above, 3, 3)
    assert pasted.sum() == 3 and pasted[0, 3, 3, 0] == 1
    assert masks.composite_images(below, above, 0, 0, True, torch.full((1, 8, 8), 0.5)).mean() == 0.5
    outside = masks.composite_images(below, above, 100, 100)
    assert torch.equal(outside, below)
    batch = masks.composite_images(below.expand(3, -1, -1, -1), above, 0, 0)
    assert batch.sum() == 3 * 4 * 3


def test_alpha() -> None:
    image = torch.rand(3, 4, 4, 3, generator=torch.Generator().manual_seed(1))
    joined = masks.join_alpha(image, torch.tensor([[[1.0]], [[0.0]]]))
    assert joined.shape == (2, 4, 4, 4)
    assert joined[0, ..., 3].max() == 0 and joined[1, ..., 3].min() == 1
    colours, transparent = masks.split_alpha(joined)
    assert torch.equal(colours, image[:2]) and transparent[:, 0, 0].tolist() == [1.0, 0.0]
    assert masks.split_alpha(image[:1])[1].max() == 0
