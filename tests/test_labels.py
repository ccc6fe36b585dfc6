"""Labels: wrapped, cut, and in letters that can be read."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from loraloom import labels
from loraloom.labels import Label, lines_of


@pytest.fixture
def own_font_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = labels._fonts()[:1]  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(labels, "_fonts", lambda: fonts)


def test_a_text_is_broken_between_words() -> None:
    lines = lines_of(Label("one two three four", "x"), 100)
    assert lines.texts == ("one two", "three four")
    assert all(lines.font.getlength(text) <= 100 for text in lines.texts)


def test_a_name_is_broken_between_its_parts() -> None:
    assert lines_of(Label("strength_model 0.5", "x"), 128).texts == ("strength_", "model 0.5")


def test_a_word_that_is_too_long_is_broken_anywhere() -> None:
    lines = lines_of(Label("a" * 30, "x"), 100, most=9)
    assert len(lines.texts) > 1 and "".join(lines.texts) == "a" * 30


def test_what_does_not_fit_is_cut() -> None:
    lines = lines_of(Label("word " * 50, "x"), 100)
    assert len(lines.texts) == labels.MOST_LINES
    assert lines.texts[-1].endswith("…") and lines.font.getlength(lines.texts[-1]) <= 100


@pytest.mark.parametrize("width", [0, 1, 3])
def test_a_width_that_holds_nothing(width: int) -> None:
    assert len(lines_of(Label("abc", "x"), width).texts) == 3
    assert lines_of(Label("", ""), width).texts == ()


@pytest.mark.usefixtures("own_font_only")
@pytest.mark.parametrize("text", ["text 一只猫", "text 赤いバラ", "text \U0001f525", "text \x07"])
def test_letters_that_no_font_has_are_not_drawn_as_boxes(text: str) -> None:
    label = Label(text, "text #1")
    assert label.drawn() == "text #1"
    assert Label.joined([label, Label("cfg 7", "cfg #2")]).drawn() == "text #1 · cfg 7"


@pytest.mark.usefixtures("own_font_only")
def test_letters_that_the_font_has_are_drawn() -> None:
    assert Label("a rose, 0.25 …", "x").drawn() == "a rose, 0.25 …"
    assert Label("un café", "x").drawn() == "un cafe"


def test_lines_are_drawn_below_each_other() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    lines_of(Label("one two three four", "x"), 100).draw(ImageDraw.Draw(picture), 0, 0)
    dark = [y for y in range(100) if any(picture.getpixel((x, y)) != (255, 255, 255) for x in range(100))]
    assert min(dark) < labels.LINE < max(dark) < 2 * labels.LINE
