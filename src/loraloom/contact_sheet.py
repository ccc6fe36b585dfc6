"""A labelled contact sheet of pictures, and the axes that it is spread over."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraloom.errors import InputError
from loraloom.labels import LINE, Label, lines_of

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN = 12
MAX_PICTURES = 400
MAX_IN_CELL = 16
"""Pictures of one cell that a sheet shows."""

LEAST_COLUMN = 128
"""Pixels that a label may take where the pictures are narrower."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An input of a node and the values it takes: `NODE.input` and `a, b, c`. No target: values speak."""

    target: str
    values: tuple[str, ...]

    def labels(self) -> tuple[Label, ...]:
        """What stands beside the pictures; a value that no font can draw is called by its number."""
        name = self.target.rpartition(".")[2]
        return tuple(
            Label(f"{name} {value}".strip(), f"{name} #{number}".strip())
            for number, value in enumerate(self.values, 1)
        )


def read_axis(text: str) -> Axis:
    """`NODE.input=a,b,c`, or `NODE.input=FIRST..LAST/COUNT` for evenly spaced numbers. Raises InputError.

    A value that holds a comma is written in double quotes ("a rose, red"), or its comma as `\\,`."""
    target, equals, values = text.partition("=")
    if not equals or "." not in target or not values.strip():
        raise InputError(
            f"{text!r} is not an axis; expected NODE.input=a,b,c or NODE.input=0..1/5 (first..last/count)"
        )
    if spaced := re.fullmatch(r"\s*([^\s,]+?)\.\.([^\s,]+?)/([^\s,]*)\s*", values):
        return Axis(target.strip(), _spaced(text, *spaced.groups()))
    return Axis(target.strip(), _separated(values))


_VALUE = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|((?:\\,|[^,])*)),')
"""A value and its comma: in quotes, where "" is a quote, or plain, where a backslash keeps a comma."""


def _separated(text: str) -> tuple[str, ...]:
    return tuple(
        plain.strip().replace("\\,", ",") if quoted is None else quoted.replace('""', '"')
        for quoted, plain in (match.groups() for match in _VALUE.finditer(text + ","))
    )


def combinations(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """Every combination of the axes' values, the last axis fastest. Raises InputError for too many."""
    total = 1
    for axis in axes:
        total *= len(axis.values)
    if total > MAX_PICTURES:
        raise InputError(f"the axes make {total} pictures; at most {MAX_PICTURES} fit a sheet")
    return list(itertools.product(*(axis.values for axis in axes)))


def contact_sheet(pictures: Sequence[Image], axes: Sequence[Axis]) -> Image:
    """Pictures in the order of `combinations` as one: the last axis goes across, the others down.

    Labels are as wide as the pictures (or a little more where those are small), in several lines if need be;
    what is longer is cut."""
    from PIL import Image, ImageDraw

    columns = axes[-1].labels()
    rows = [Label.joined(labels) for labels in itertools.product(*(axis.labels() for axis in axes[:-1]))]
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    column_width = max(width, min(LEAST_COLUMN, *(label.width() for label in columns)))
    row_width = min(max(width, LEAST_COLUMN), max(label.width() for label in rows))
    heads = [lines_of(label, column_width) for label in columns]
    head = MARGIN + LINE * max(len(lines.texts) for lines in heads)
    left = 2 * MARGIN + row_width if row_width else MARGIN
    step_x, step_y = column_width + MARGIN, height + MARGIN
    sheet = Image.new("RGB", (left + step_x * len(columns), head + step_y * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        lines.draw(draw, left + column * step_x, MARGIN // 2)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, len(columns))
        top = head + row * step_y
        if column == 0:
            lines_of(rows[row], row_width, height // LINE).draw(draw, MARGIN, top)
        sheet.paste(picture.convert("RGB"), (left + column * step_x, top))
    return sheet


def side_by_side(pictures: Sequence[Image]) -> Image:
    """The pictures of one cell as one, in a square; a single one as it is. More than `MAX_IN_CELL` are left
    out."""
    from PIL import Image

    shown = pictures[:MAX_IN_CELL]
    if len(shown) == 1:
        return shown[0]
    across = math.ceil(math.sqrt(len(shown)))
    width, height = max(p.width for p in shown), max(p.height for p in shown)
    cell = Image.new("RGB", (across * width, math.ceil(len(shown) / across) * height), "white")
    for index, picture in enumerate(shown):
        row, column = divmod(index, across)
        cell.paste(picture.convert("RGB"), (column * width, row * height))
    return cell


def contact_sheet_png(pictures: Sequence[Image], axes: Sequence[Axis]) -> bytes:
    """`contact_sheet` as the content of a PNG file, whose text `grid` says the axes and their values."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    said = [{"target": axis.target, "values": axis.values} for axis in axes]
    info.add_text("grid", json.dumps({"axes": said}))
    buffer = io.BytesIO()
    contact_sheet(pictures, axes).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _spaced(text: str, first: str, last: str, count: str) -> tuple[str, ...]:
    try:
        begin, end, number = float(first), float(last), int(count)
    except ValueError:
        begin, end, number = 0.0, 0.0, 0
    if not 2 <= number <= MAX_PICTURES:
        raise InputError(f"{text!r}: expected two numbers and a count from 2, as in 0..1/5")
    return tuple(f"{begin + (end - begin) * i / (number - 1):.6g}" for i in range(number))
