"""The ways of ResizeImageMaskNode to say a size."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import InputError
from loraloom.nodes.images import batch_many_images
from loraloom.nodes.resizing import resize_image_or_mask

IMAGE = torch.rand(1, 20, 40, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("way", "said", "size"),
    [
        ("scale dimensions", {"width": 10, "height": 10, "crop": "center"}, (10, 10)),
        ("scale dimensions", {"width": 0, "height": 10, "crop": "disabled"}, (10, 20)),
        ("scale by multiplier", {"multiplier": 1.5}, (30, 60)),
        ("scale longer dimension", {"longer_size": 10}, (5, 10)),
        ("scale shorter dimension", {"shorter_size": 10}, (10, 20)),
        ("scale width", {"width": 80}, (40, 80)),
        ("scale height", {"height": 5}, (5, 10)),
        ("scale total pixels", {"megapixels": 0.01}, (72, 145)),
        ("match size", {"match": torch.zeros(1, 7, 9), "crop": "disabled"}, (7, 9)),
    ],
)
def test_ways(way: str, said: dict[str, object], size: tuple[int, int]) -> None:
    named = {f"resize_type.{name}": value for name, value in said.items()}
    assert resize_image_or_mask(IMAGE, way, "area", **named).shape == (1, *size, 3)
    assert resize_image_or_mask(IMAGE[..., 0], way, "lanczos", **named).shape == (1, *size)


@pytest.mark.parametrize(
    ("size", "multiple", "wanted"),
    [((20, 40), 16, (16, 32)), ((20, 40), 8, (16, 40)), ((20, 40), 20, (20, 40)), ((20, 40), 32, (20, 40)),
     ((37, 20), 8, (32, 16)), ((20, 40), 1, (20, 40))],
)  # fmt: skip
def test_a_multiple_is_covered_and_cut(size: tuple[int, int], multiple: int, wanted: tuple[int, int]) -> None:
    picture = torch.rand(1, *size, 3)
    said = {"resize_type.multiple": multiple}
    found = resize_image_or_mask(picture, "scale to multiple", "bilinear", **said)
    assert found.shape == (1, *wanted, 3)
    assert resize_image_or_mask(picture[..., 0], "scale to multiple", "area", **said).shape == (1, *wanted)
    if size == wanted:
        assert torch.equal(found, picture)


def test_what_a_multiple_cuts_off_is_equal_on_both_sides() -> None:
    ramp = torch.linspace(0, 1, 20)[None, :, None, None].repeat(1, 1, 40, 3)
    found = resize_image_or_mask(ramp, "scale to multiple", "bilinear", **{"resize_type.multiple": 8})
    torch.testing.assert_close(found, ramp[:, 2:18])


@pytest.mark.parametrize(
    ("way", "said"),
    [("scale width", {}), ("match size", {}), ("no such way", {}), ("scale width", {"width": "x"})],
)
def test_what_is_missing_is_named(way: str, said: dict[str, object]) -> None:
    with pytest.raises(InputError, match="resize_type|no such way"):
        resize_image_or_mask(IMAGE, way, "area", **{f"resize_type.{n}": v for n, v in said.items()})


def test_many_pictures_are_joined_in_the_order_of_their_numbers() -> None:
    names = {f"images.image{n}": torch.full((1, 4, 4, 3), float(n)) for n in (10, 2, 0)}
    names["images.image1"] = torch.full((1, 8, 8, 4), 1.0)
    assert batch_many_images(**names)[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0, 10.0]
