"""The look that `loraloom demo --train` teaches."""

from __future__ import annotations

from typing import cast

from PIL import Image

from loraloom.demo.lesson import as_delft


def test_paper_stays_white_and_things_turn_blue() -> None:
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste((200, 30, 20), (0, 4, 4, 8))
    shown = as_delft(picture)
    assert shown.getpixel((1, 1)) == (255, 255, 255)
    red, green, blue = cast("tuple[int, int, int]", shown.getpixel((1, 6)))
    assert red < green < blue - 60
