from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loraloom.errors import InputError, LoraloomError
from loraloom.nodes.picture_files import empty_image, picture_arrays, read_picture

LIMIT = 1_000_000


def write(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    Image.fromarray(array, mode).save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def test_a_picture_is_rgb_from_0_to_1_and_its_mask_is_what_is_transparent(tmp_path: Path) -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 255, 51
    pixels, mask = read_picture(write(tmp_path / "a.png", rgba), LIMIT)
    assert pixels.shape == (1, 2, 3, 3)
    assert pixels[0, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert mask.shape == (1, 2, 3)
    assert mask.unique().item() == pytest.approx(0.8)


def test_a_picture_without_transparency_has_an_empty_mask(tmp_path: Path) -> None:
    _, mask = read_picture(write(tmp_path / "a.png", np.zeros((2, 3, 3), np.uint8)), LIMIT)
    assert mask.shape == (1, 64, 64)
    assert not mask.any()


def test_16_bit_grey_is_scaled_to_8(tmp_path: Path) -> None:
    grey = np.full((2, 2), 0x8080, np.uint16)
    pixels, _ = read_picture(write(tmp_path / "a.png", grey), LIMIT)
    assert pixels.unique().item() == pytest.approx(129 / 255)  # ComfyUI divides by 255, not 257


def test_the_orientation_in_exif_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    pixels, _ = read_picture(tmp_path / "a.jpg", LIMIT)
    assert pixels.shape == (1, 4, 2, 3)


def test_frames_become_a_batch(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    pixels, mask = read_picture(tmp_path / "a.gif", LIMIT)
    assert len(pixels) == len(mask) == 3


@pytest.mark.parametrize("cut", [0, 7, 20, 60])
def test_a_damaged_picture_is_an_input_error(tmp_path: Path, cut: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    path = tmp_path / "cut.png"
    path.write_bytes(buffer.getvalue()[:cut])
    with pytest.raises(InputError, match=r"cut\.png"):
        read_picture(path, LIMIT)


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "big.png", np.zeros((100, 100), np.uint8))
    with pytest.raises(InputError, match="100×100"):
        read_picture(path, 9_999)


def test_values_are_truncated_to_8_bits_and_held_in_range() -> None:
    values = torch.tensor([-0.5, 0.0, 0.5, 0.999, 1.0, 1.5]).reshape(1, 1, 6, 1).expand(1, 1, 6, 3)
    assert picture_arrays(values)[0][0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_never_become_a_black_picture(value: float) -> None:
    with pytest.raises(LoraloomError, match="NaN"):
        picture_arrays(torch.full((1, 2, 2, 3), value))


def test_empty_image_has_its_colour() -> None:
    assert (empty_image(2, 1, 1, 0xFF8000)[0, 0, 0] * 255).round().tolist() == [255, 128, 0]
