"""Short texts drawn on pictures: wrapped to a width, in a font that has their letters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast
from unicodedata import combining, normalize

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

FONT_SIZE, LINE = 18, 24
MOST_LINES = 3
_JOINTS = "_-/\\."
"""Where a word is broken if it must be: behind these."""

_SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "NotoSansCJKsc-Regular.otf", "SourceHanSans.ttc",
    "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf",
    "msyh.ttc", "msgothic.ttc", "YuGothM.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf", "DejaVuSans.ttf", "segoeui.ttf",
)  # fmt: skip
"""Fonts of the systems people have, for letters that Pillow's own lacks."""


@dataclass(frozen=True, slots=True)
class Label:
    """A text, and what to draw instead where no font at hand has its letters."""

    text: str
    instead: str

    @staticmethod
    def joined(labels: Iterable[Label]) -> Label:
        found = list(labels)
        return Label(" · ".join(one.drawn() for one in found), " · ".join(one.instead for one in found))

    def drawn(self) -> str:
        candidates = (self.text, _without_accents(self.text))
        return next((text for text in candidates if _font_of(text) is not None), self.instead)

    def width(self) -> int:
        """Pixels that it takes in one line."""
        text = self.drawn()
        return int(_font(text).getlength(text)) + 1 if text else 0


@dataclass(frozen=True, slots=True)
class Lines:
    """A label as it is drawn."""

    texts: tuple[str, ...]
    font: FreeTypeFont

    def draw(self, draw: ImageDraw, left: int, top: int) -> None:
        for number, text in enumerate(self.texts):
            draw.text((left, top + number * LINE), text, "black", self.font)


def lines_of(label: Label, width: int, most: int = MOST_LINES) -> Lines:
    """A label in lines of at most `width` pixels, broken between words where that is possible; what does not
    fit into `most` lines is cut, with an ellipsis."""
    text = label.drawn()
    font = _font(text)
    lines = list(_wrapped(text, font, width))
    if len(lines) > max(most, 1):
        rest = lines[max(most, 1) - 1]
        while rest and font.getlength(rest + "…") > width:
            rest = rest[:-1]
        lines[max(most, 1) - 1 :] = [rest + "…"]
    return Lines(tuple(lines), font)


def _wrapped(text: str, font: FreeTypeFont, width: int) -> Iterator[str]:
    rest = " ".join(text.split())
    while rest:
        count = len(rest)
        while count > 1 and font.getlength(rest[:count].rstrip()) > width:
            count -= 1
        if count < len(rest):
            joint = 1 + max(rest.rfind(mark, 0, count - 1) for mark in _JOINTS)
            count = rest.rfind(" ", 0, count + 1) + 1 or joint or count
        yield rest[:count].rstrip()
        rest = rest[count:].lstrip()


def _without_accents(text: str) -> str:
    """A text as it is written where accents are unknown: "café" as "cafe"."""
    return "".join(letter for letter in normalize("NFKD", text) if not combining(letter))


def _font(text: str) -> FreeTypeFont:
    found = _font_of(text)
    return _fonts()[0] if found is None else found


def _font_of(text: str) -> FreeTypeFont | None:
    """The first font that has every letter of a text; None where none has."""
    letters = {letter for letter in text if not letter.isspace()}
    return next((font for font in _fonts() if all(_has(font, letter) for letter in letters)), None)


@cache
def _fonts() -> tuple[FreeTypeFont, ...]:
    from PIL import ImageFont

    found: list[FreeTypeFont] = []
    own = ImageFont.load_default(FONT_SIZE)
    if isinstance(own, ImageFont.FreeTypeFont):
        found.append(own)
    for name in _SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, FONT_SIZE))
        except OSError:
            continue
    return tuple(found)


@cache
def _has(font: FreeTypeFont, letter: str) -> bool:
    """Whether a font draws a letter as anything but its sign for letters that it lacks."""
    return letter.isprintable() and _drawn(font, letter) != _drawn(font, "\U0010fffe")


def _drawn(font: FreeTypeFont, letter: str) -> bytes:
    return bytes(cast("Iterable[int]", font.getmask(letter)))
