from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from loraloom.contact_sheet import (
    MAX_IN_CELL,
    Axis,
    combinations,
    contact_sheet,
    contact_sheet_png,
    read_axis,
    side_by_side,
)  # fmt: skip
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


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('"a rose, red","a blue vase"', ("a rose, red", "a blue vase")),
        ("a rose\\, red,a blue vase", ("a rose, red", "a blue vase")),
        ('"a rose, red" , plain', ("a rose, red", "plain")),
        ('"say ""hi"", now",b', ('say "hi", now', "b")),
        ('a "rose", b', ('a "rose"', "b")),
        ('"open, b', ('"open', "b")),
        ("1.5\\style.safetensors,b\\", ("1.5\\style.safetensors", "b\\")),
        ("a,,b", ("a", "", "b")),
        ('"",b', ("", "b")),
        ("wait.. a/b, c", ("wait.. a/b", "c")),
        ("(a, b:1.2)", ("(a", "b:1.2)")),
    ],
)
def test_values_may_hold_commas(text: str, values: tuple[str, ...]) -> None:
    assert read_axis(f"2.text={text}").values == values


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


LONG = "a very long prompt text that does not fit over a picture of one hundred and twenty eight pixels"


def test_a_long_label_does_not_stretch_the_sheet() -> None:
    pictures = [Image.new("RGB", (128, 128)) for _ in range(4)]
    across = contact_sheet(pictures[:2], [Axis("2.text", (LONG, "b"))])
    assert across.width < 2 * (128 + 30)
    both = contact_sheet(pictures, [Axis("2.text", (LONG, "b")), Axis("1.steps", ("1", "2"))])
    assert both.width < 3 * (128 + 30)


def test_short_labels_are_whole_over_small_pictures() -> None:
    pictures = [Image.new("RGB", (16, 16)) for _ in range(2)]
    assert contact_sheet(pictures, [Axis("1.cfg", ("7.5", "8"))]).width < 2 * 80


def test_the_sheet_says_its_values() -> None:
    pictures = [Image.new("RGB", (16, 16)) for _ in range(2)]
    content = contact_sheet_png(pictures, [Axis("2.text", ("一只猫", "赤いバラ"))])
    with Image.open(io.BytesIO(content)) as sheet:
        said = json.loads(sheet.info["grid"])
    assert said == {"axes": [{"target": "2.text", "values": ["一只猫", "赤いバラ"]}]}


def test_the_pictures_of_a_cell_stand_side_by_side() -> None:
    colours = [(number, 0, 0) for number in range(1, 6)]
    cell = side_by_side([Image.new("RGB", (10, 8), colour) for colour in colours])
    assert cell.size == (30, 16)
    assert [cell.getpixel((x, y)) for y in (0, 8) for x in (0, 10, 20)] == [*colours, (255, 255, 255)]
    single = Image.new("RGB", (10, 8))
    assert side_by_side([single]) is single
    assert side_by_side([single] * 100).size == (40, 8 * MAX_IN_CELL // 4)
