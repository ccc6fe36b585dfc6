"""Picture nodes on values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraloom.nodes import image_effects, images


def picture(height: int, width: int, channels: int = 3, value: float | None = None) -> Tensor:
    if value is not None:
        return torch.full((1, height, width, channels), value)
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(height * width))


def test_sizes() -> None:
    wide = picture(20, 40)
    scaled = images.scale_image(image=wide, upscale_method="area", width=0, height=10, crop="disabled")
    assert scaled.shape == (1, 10, 20, 3)
    assert images.scale_image_by(wide, "bilinear", 1.5).shape == (1, 30, 60, 3)
    assert images.scale_image_to_pixels(wide, "area", 0.01).shape == (1, 72, 145, 3)
    assert images.scale_image_to_side(wide, "lanczos", 30).shape == (1, 15, 30, 3)
    assert images.scale_image_for_kontext(picture(90, 160)).shape == (1, 752, 1392, 3)
    assert images.image_size(wide) == (40, 20, 1)


def test_fitting_into_a_rectangle_adds_bars() -> None:
    fitted = images.resize_and_pad(
        image=picture(4, 8, value=0.5),
        target_width=4,
        target_height=4,
        padding_color="white",
        interpolation="area",
    )
    assert fitted[0, :, 0, 0].tolist() == [1.0, 0.5, 0.5, 1.0]


def test_cropping_stays_inside() -> None:
    image = picture(8, 8)
    assert torch.equal(images.crop_image(image, 4, 2, 3, 5), image[:, 5:7, 3:7])
    assert images.crop_image(image, 512, 512, 100, 100).shape == (1, 1, 1, 3)


def test_rotation_is_clockwise() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    assert images.rotate_image(image, "90 degrees")[0, ..., 0].tolist() == [[3.0, 1.0], [4.0, 2.0]]
    assert images.flip_image(image, "y-axis: horizontally")[0, ..., 0].tolist() == [[2.0, 1.0], [4.0, 3.0]]


@pytest.mark.parametrize(
    ("direction", "match", "shape"),
    [
        ("right", True, (2, 8, 4 + 6 + 16, 3)),
        ("left", False, (2, 8, 4 + 6 + 8, 3)),
        ("down", True, (2, 8 + 6 + 2, 4, 3)),
        ("up", False, (2, 8 + 6 + 4, 8, 3)),
    ],
)
def test_stitching(direction: str, match: bool, shape: tuple[int, ...]) -> None:
    first, second = picture(8, 4, value=0.25), picture(4, 8, value=0.75).expand(2, -1, -1, -1)
    stitched = images.stitch_images(
        image1=first,
        direction=direction,
        match_image_size=match,
        spacing_width=5,
        spacing_color="red",
        image2=second,
    )
    assert stitched.shape == shape
    red = (stitched == torch.tensor([1.0, 0.0, 0.0])).all(-1)
    assert red.any()
    corner = (
        stitched[0, shape[1] // 2, 0] if direction in ("left", "right") else stitched[0, 0, shape[2] // 2]
    )
    expected = 0.25 if direction in ("right", "down") else 0.75
    torch.testing.assert_close(corner, torch.full((3,), expected), atol=0.003, rtol=0)


def test_padding_for_outpainting_feathers_towards_the_margin() -> None:
    image = picture(16, 16, value=0.0)
    padded, mask = images.pad_for_outpainting(image, 8, 0, 0, 0, 4)
    assert padded.shape == (1, 16, 24, 3) and padded[0, 0, 0, 0] == 0.5
    assert mask.shape == (1, 16, 24)
    assert mask[0, 5, :13].tolist() == [1.0] * 8 + [1.0, 0.5625, 0.25, 0.0625, 0.0]
    assert images.pad_for_outpainting(image, 8, 0, 0, 0, 8)[1][0, 5, 8] == 0


def test_batches() -> None:
    first, second = picture(4, 4), picture(8, 8, 4)
    joined = images.batch_images(first, second)
    assert joined.shape == (2, 4, 4, 4) and (joined[0, ..., 3] == 1).all()
    assert images.repeat_images(first, 3).shape[0] == 3
    assert len(images.images_from_batch(joined, 1, 9)) == 1
    rebatched = images.rebatch_images(images=[joined, joined[:1]], batch_size=[2])
    assert [len(batch) for batch in rebatched] == [2, 1]


def test_noise_depends_on_the_seed_alone() -> None:
    grey = picture(4, 4, value=0.5)
    assert torch.equal(images.add_image_noise(grey, 3, 0.1), images.add_image_noise(grey, 3, 0.1))
    assert not torch.equal(images.add_image_noise(grey, 3, 0.1), images.add_image_noise(grey, 4, 0.1))
    assert torch.equal(images.add_image_noise(grey, 3, 0.0), grey)
    assert torch.equal(images.invert_image(grey), grey)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("normal", 0.8),
        ("multiply", 0.2),
        ("screen", 0.85),
        ("overlay", 0.4),
        ("soft_light", 0.25 + 0.6 * (0.5 - 0.25)),
        ("difference", 0.0),
    ],
)
def test_blend_modes(mode: str, expected: float) -> None:
    blended = image_effects.blend_images(
        image1=picture(2, 2, value=0.25),
        image2=picture(4, 4, 4, value=0.8),
        blend_factor=1.0,
        blend_mode=mode,
    )
    torch.testing.assert_close(blended, picture(2, 2, value=expected))


def test_blur_and_sharpen_leave_flat_pictures_alone() -> None:
    flat = picture(6, 6, value=0.5)
    torch.testing.assert_close(image_effects.blur_image(flat, 2, 0.7), flat)
    torch.testing.assert_close(image_effects.sharpen_image(flat, 2, 0.7, 1.0), flat)
    dot = torch.zeros(1, 5, 5, 1)
    dot[0, 2, 2] = 1.0
    blurred = image_effects.blur_image(dot, 1, 1.0)
    assert blurred[0, 2, 2] > blurred[0, 2, 1] > blurred[0, 1, 1] > 0
    torch.testing.assert_close(blurred.sum(), torch.tensor(1.0))
    assert image_effects.sharpen_image(dot, 1, 1.0, 1.0)[0, 2, 2] == 1


@pytest.mark.parametrize("dither", ["none", "floyd-steinberg", "bayer-2", "bayer-16"])
def test_quantising_leaves_as_many_colours_as_asked(dither: str) -> None:
    reduced = image_effects.quantize_image(image=picture(16, 16), colors=4, dither=dither)
    assert len(torch.unique(reduced.reshape(-1, 3), dim=0)) <= 4
