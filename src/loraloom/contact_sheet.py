"""A labelled contact sheet of pictures, and the axes that it is spread over."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraloom.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN, LINE, FONT_SIZE = 12, 26, 18
MAX_PICTURES = 400


@dataclass(frozen=True, slots=True)
class Axis:
    """An input of a node and the values it takes: `NODE.input` and `a, b, c`. No target: values speak."""

    target: str
    values: tuple[str, ...]

    def labels(self) -> tuple[str, ...]:
        return tuple(f"{self.target.rpartition('.')[2]} {value}".strip() for value in self.values)


def read_axis(text: str) -> Axis:
    """`NODE.input=a,b,c`, or `NODE.input=FIRST..LAST/COUNT` for evenly spaced numbers. Raises InputError."""
    target, equals, values = text.partition("=")
    if not equals or "." not in target or not values.strip():
        raise InputError(
            f"{text!r} is not an axis; expected NODE.input=a,b,c or NODE.input=0..1/5 (first..last/count)"
        )
    ends, slash, count = values.partition("/")
    first, dots, last = ends.partition("..")
    if slash and dots:
        return Axis(target.strip(), _spaced(text, first, last, count))
    return Axis(target.strip(), tuple(value.strip() for value in values.split(",")))


def combinations(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """Every combination of the axes' values, the last axis fastest. Raises InputError for too many."""
    total = 1
    for axis in axes:
        total *= len(axis.values)
    if total > MAX_PICTURES:
        raise InputError(f"the axes make {total} pictures; at most {MAX_PICTURES} fit a sheet")
    return list(itertools.product(*(axis.values for axis in axes)))


def contact_sheet(pictures: Sequence[Image], axes: Sequence[Axis]) -> Image:
    """Pictures in the order of `combinations` as one: the last axis goes across, the others down."""
    from PIL import Image, ImageDraw, ImageFont

    columns = axes[-1].labels()
    rows = [" · ".join(labels) for labels in itertools.product(*(axis.labels() for axis in axes[:-1]))]
    font = ImageFont.load_default(FONT_SIZE)
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    left = MARGIN + int(max((font.getlength(label) for label in rows), default=0))
    width_of_column = max(width, *(int(font.getlength(label)) for label in columns)) + MARGIN
    size = (left + MARGIN + width_of_column * len(columns), LINE + MARGIN + (height + MARGIN) * len(rows))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        draw.text((left + MARGIN + column * width_of_column, MARGIN // 2), label, "black", font)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, len(columns))
        top = LINE + MARGIN // 2 + row * (height + MARGIN)
        if column == 0:
            draw.text((MARGIN // 2, top), rows[row], "black", font)
        sheet.paste(picture.convert("RGB"), (left + MARGIN + column * width_of_column, top))
    return sheet


def contact_sheet_png(pictures: Sequence[Image], axes: Sequence[Axis]) -> bytes:
    """`contact_sheet` as the content of a PNG file."""
    buffer = io.BytesIO()
    contact_sheet(pictures, axes).save(buffer, "PNG")
    return buffer.getvalue()


def _spaced(text: str, first: str, last: str, count: str) -> tuple[str, ...]:
    try:
        begin, end, number = float(first), float(last), int(count)
    except ValueError:
        begin, end, number = 0.0, 0.0, 0
    if not 2 <= number <= MAX_PICTURES:
        raise InputError(f"{text!r}: expected two numbers and a count from 2, as in 0..1/5")
    return tuple(f"{begin + (end - begin) * i / (number - 1):.6g}" for i in range(number))
