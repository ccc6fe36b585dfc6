"""Resizing: values that follow from the definitions."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import InputError
from loraloom.resampling import bislerp, lanczos, repeat_to, resize, resize_mask


def test_centre_crop_keeps_the_middle() -> None:
    wide = torch.arange(8.0).expand(1, 1, 4, 8)
    assert resize(wide, 4, 4, "nearest-exact", "center")[0, 0, 0].tolist() == [2.0, 3.0, 4.0, 5.0]
    tall = wide.transpose(2, 3)
    assert resize(tall, 2, 2, "area", "center")[0, 0, :, 0].tolist() == [2.5, 4.5]


def test_bislerp_keeps_norms_between_orthogonal_vectors() -> None:
    latent = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, :, None, :]
    wider = bislerp(latent, 4, 1)
    assert wider.shape == (1, 2, 1, 4)
    torch.testing.assert_close(wider.norm(dim=1), torch.ones(1, 1, 4))
    angle = torch.atan2(wider[0, 1, 0], wider[0, 0, 0]) / (torch.pi / 2)
    torch.testing.assert_close(angle, torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_bislerp_mixes_lengths_and_survives_equal_opposite_and_zero_vectors() -> None:
    equal = torch.ones(1, 3, 2, 2)
    torch.testing.assert_close(bislerp(equal, 5, 5), torch.ones(1, 3, 5, 5))
    opposite = torch.tensor([[2.0, -2.0], [0.0, 0.0]])[None, :, None, :]
    torch.testing.assert_close(bislerp(opposite, 4, 1)[0, 0, 0], torch.tensor([2.0, 1.0, -1.0, -2.0]))
    nothing = torch.zeros(1, 4, 2, 2)
    assert torch.equal(bislerp(nothing, 3, 3), torch.zeros(1, 4, 3, 3))


def test_lanczos_rounds_to_8_bits_like_pillow() -> None:
    image = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    small = lanczos(image, 4, 4)
    assert small.shape == (1, 3, 4, 4)
    levels = small * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert torch.equal(lanczos(image[:, :1], 4, 4)[:, 0], small[:, 0])


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "bislerp", "lanczos"])
def test_every_method_gives_the_size_asked_for(method: str) -> None:
    assert resize(torch.rand(2, 3, 9, 6), 5, 7, method).shape == (2, 3, 7, 5)


def test_no_pixels_is_an_error() -> None:
    with pytest.raises(InputError, match="0×4"):
        resize(torch.rand(1, 3, 4, 4), 0, 4, "area")


def test_batches_are_repeated_from_their_start_and_cut() -> None:
    batch = torch.arange(3)[:, None]
    assert repeat_to(batch, 5)[:, 0].tolist() == [0, 1, 2, 0, 1]
    assert repeat_to(batch, 2)[:, 0].tolist() == [0, 1]
    assert resize_mask(torch.ones(4, 4), 2, 3).shape == (1, 3, 2)
