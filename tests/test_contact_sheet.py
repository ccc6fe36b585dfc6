from __future__ import annotations

import pytest
from PIL import Image

from loraloom.contact_sheet import Axis, combinations, contact_sheet, read_axis
from loraloom.errors import InputError


def test_values_and_evenly_spaced_numbers() -> None:
    assert read_axis("KSampler.cfg=1, 4.5,8") == Axis("KSampler.cfg", ("1", "4.5", "8"))
    assert read_axis("2.strength_model=0..1/5").values == ("0", "0.25", "0.5", "0.75", "1")


@pytest.mark.parametrize(
    "text", ["cfg=1,2", "KSampler.cfg", "KSampler.cfg=", "a.b=0..1/1", "a.b=x..1/3", "a.b=0..1/y"]
)
def test_what_is_no_axis(text: str) -> None:
    with pytest.raises(InputError):
        read_axis(text)


def test_the_last_axis_is_fastest() -> None:
    assert combinations([Axis("a.x", ("1", "2")), Axis("b.y", ("3", "4"))]) == [
        ("1", "3"),
        ("1", "4"),
        ("2", "3"),
        ("2", "4"),
    ]


def test_too_many_pictures() -> None:
    axis = Axis("a.x", tuple(map(str, range(30))))
    with pytest.raises(InputError, match="900"):
        combinations([axis, axis])


def test_every_picture_has_its_place() -> None:
    colours = ["red", "lime", "blue", "yellow", "cyan", "magenta"]
    pictures = [Image.new("RGB", (40, 30), colour) for colour in colours]
    sheet = contact_sheet(pictures, [Axis("a.x", ("1", "2")), Axis("b.y", ("p", "q", "r"))])
    found = dict.fromkeys((p.getpixel((0, 0)) for p in pictures), 0)
    for pixel in sheet.get_flattened_data():
        if pixel in found:
            found[pixel] += 1
    assert set(found.values()) == {40 * 30}
