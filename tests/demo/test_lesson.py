"""The look that `loraloom demo --train` teaches."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from PIL import Image

from loraloom.demo.lesson import THINGS, as_delft, write_lesson


def test_paper_stays_white_and_things_turn_blue() -> None:
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste((200, 30, 20), (0, 4, 4, 8))
    shown = as_delft(picture)
    assert shown.getpixel((1, 1)) == (255, 255, 255)
    red, green, blue = cast("tuple[int, int, int]", shown.getpixel((1, 6)))
    assert red < green < blue - 60


def test_a_lesson_is_a_picture_and_a_caption_that_begins_with_the_word(tmp_path: Path) -> None:
    write_lesson(tmp_path / "new", THINGS[0], Image.new("RGB", (8, 8), "white"))
    assert (tmp_path / "new" / "a-red-rose.txt").read_text("utf-8") == "delft, a red rose"
    assert (tmp_path / "new" / "a-red-rose.png").is_file()
