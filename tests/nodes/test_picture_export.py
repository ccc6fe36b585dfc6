"""Pictures saved with 16 bits, and compared."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image as PillowImage

from loraloom.errors import InputError
from loraloom.nodes.picture_export import compare_images, png16, save_image_advanced
from tests.nodes.runs import PlainRun


def test_sixteen_bits_are_kept() -> None:
    image = torch.tensor([[[0.0, 0.5, 1.0], [1 / 65535, 2.0, -1.0]]])
    data = png16(image, {"prompt": "{}"})
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    row = zlib.decompress(data[start + 4 : start + 4 + length])
    values = [int.from_bytes(row[i : i + 2], "big") for i in range(1, 13, 2)]
    assert row[0] == 0 and values == [0, 32768, 65535, 1, 65535, 0]


def test_sixteen_bit_files_open_with_their_workflow(tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    run.prompt = {"1": {"class_type": "é"}}
    images = torch.rand(2, 4, 6, 3, generator=torch.Generator().manual_seed(1))
    said = {"format.bit_depth": "16-bit", "format.input_color_space": "sRGB"}
    result = save_image_advanced(images, "deep/picture", run=run, **said)
    assert result.outputs[0] is images
    files = sorted((tmp_path / "output/deep").iterdir())
    assert len(files) == 2
    with PillowImage.open(files[0]) as picture:
        picture.load()
        assert picture.size == (6, 4)
        assert json.loads(picture.info["prompt"]) == run.prompt
        level = picture.convert("RGB").getpixel((0, 0))
    assert isinstance(level, tuple)
    assert abs(level[0] / 255 - images[0, 0, 0, 0].item()) < 0.01


def test_eight_bits_and_what_is_not_written(tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    image = torch.zeros(1, 2, 2, 3)
    assert save_image_advanced(image, run=run).ui["images"]
    with pytest.raises(InputError, match="32-bit"):
        save_image_advanced(image, "a", run=run, **{"format.bit_depth": "32-bit"})


def test_comparing_shows_both(tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    shown = compare_images(torch.zeros(1, 2, 2, 3), None, run=run).ui
    assert shown["b_images"] == [] and isinstance(shown["a_images"], list) and len(shown["a_images"]) == 1
