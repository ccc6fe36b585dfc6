"""The measures of the demo's pictures, on pictures of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from loraloom.demo.measures import clean_border, edge_energy, grey, on_grid, psnr


def blocks(cell: int = 16, cells: int = 12) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 255, (cells, cells, 3), np.uint8)
    return Image.fromarray(values).resize((cell * cells, cell * cells), Image.Resampling.NEAREST)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float64)


def test_hard_square_pixels_lie_on_the_grid_and_noise_does_not() -> None:
    noise = np.random.default_rng(4).uniform(0, 255, (192, 192, 3))
    assert on_grid(pixels(blocks()), 16) == 1.0
    assert on_grid(noise, 16) == pytest.approx(11 / 191, abs=0.01)
    assert on_grid(pixels(blocks().filter(ImageFilter.GaussianBlur(4))), 16) < 0.2
    assert on_grid(np.full((32, 32, 3), 7.0), 16) == 1.0


def test_blur_lowers_edge_energy() -> None:
    sharp = blocks(6, 32)
    assert edge_energy(pixels(sharp.filter(ImageFilter.GaussianBlur(4)))) < 0.6 * edge_energy(pixels(sharp))


def test_a_border_is_clean_where_it_has_one_colour_whatever_is_inside() -> None:
    picture = np.full((64, 64, 3), 250.0)
    picture[20:40, 20:40] = 0
    assert clean_border(picture) == 1.0
    picture[:, :4] = 200
    assert clean_border(picture) == pytest.approx(1 - 256 / 1792)


def test_psnr_and_grey() -> None:
    black = np.zeros((8, 8, 3))
    assert psnr(black, black) == 100.0
    assert psnr(black, black + 25.5) == pytest.approx(20.0)
    assert grey(black) == 1.0
    assert grey(black + [255.0, 0.0, 0.0]) == 0.0
