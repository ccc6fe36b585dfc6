"""Picture files of every mode and every damage."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraloom.errors import InputError
from loraloom.nodes.picture_files import read_picture
from loraloom.pictures import in_8_bits, opened

RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_wide_greys_keep_their_shades(mode: str) -> None:
    kind = {"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")
    picture = Image.frombytes(mode, (64, 64), RAMP.astype(kind).tobytes())
    grey = np.asarray(in_8_bits(picture).convert("RGB"))
    assert np.abs(grey[..., 0] - RAMP / 255).max() <= 2
    assert (grey[..., 0] == grey[..., 2]).all()


@pytest.mark.parametrize("top", [0.5, 1.0])
def test_floats_that_glare_are_cut_off_and_not_taken_for_darkness(top: float) -> None:
    values = (RAMP / 65535 * top * 2).astype(np.float32)
    picture = np.asarray(in_8_bits(Image.fromarray(values)))
    assert np.abs(picture - np.clip(values, 0, 1) * 255).max() <= 1


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("pipes are no files there")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="no regular file"), opened(tmp_path / "a.png"):
        pass


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_by_what_they_hold(top: float) -> None:
    picture = Image.fromarray((RAMP / 65535 * top).astype(np.float32))
    assert np.abs(np.asarray(in_8_bits(picture)) - RAMP / 257).max() <= 2


def test_others_stay_as_they_are() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        picture = Image.new(mode, (4, 4))
        assert in_8_bits(picture) is picture


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_damage_names_the_file(suffix: str, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with (
        pytest.raises(InputError, match=rf"cut\.{suffix} is (cut off|not a picture)"),
        opened(path) as picture,
    ):
        picture.load()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png"), opened(tmp_path / "none.png"):
        pass


def test_a_damaged_picture_is_told_whatever_its_library_raises(tmp_path: Path) -> None:
    """That of AVIF raises RuntimeError."""
    path = tmp_path / "a.avif"
    Image.new("RGB", (16, 16)).save(path)
    path.write_bytes(path.read_bytes().replace(b"iloc", b"xloc"))
    with pytest.raises(InputError, match="a.avif"), opened(path) as picture:
        picture.load()
    with pytest.raises(InputError, match="a.avif"):
        read_picture(path, 1000)
