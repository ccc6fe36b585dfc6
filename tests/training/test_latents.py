"""Pictures as the autoencoder gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraloom.errors import InputError
from loraloom.training.latents import fitted


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_of_grey_are_no_white(suffix: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    found = fitted(tmp_path / f"a.{suffix}", (64, 64), flip=False)
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert found.min() < 0.02 and found.max() > 0.98


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert fitted(tmp_path / "a.png", (8, 8), flip=False).min() == 1


def test_a_picture_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(InputError, match=r"cut\.jpg is cut off"):
        fitted(path, (64, 64), flip=False)
