"""What a run leaves for the eye: its losses as a picture, and as TensorBoard events where that is there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image, ImageDraw

from loraloom.atomic_file import write_file

if TYPE_CHECKING:
    from loraloom.training.loop import StepReport
    from loraloom.training.state import Position

SIZE = (900, 420)
MARGIN = 50
SMOOTHING = 0.95
"""Share of the past in the drawn mean: single steps scatter too much to be read."""

Point = tuple[float, float]


class Writer(Protocol):
    """TensorBoard's writer, as far as we use it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def close(self) -> None: ...


def open_writer(folder: Path) -> Writer | None:
    """TensorBoard's writer; None where the package is not installed."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def write_scalars(writer: Writer, report: StepReport) -> None:
    """One step's numbers."""
    writer.add_scalar("loss/step", report.loss, report.step)
    writer.add_scalar("rate", report.rate, report.step)
    if report.validation is not None:
        writer.add_scalar("loss/validation", report.validation, report.step)


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential mean, without the bias of its start (Kingma & Ba 2015)."""
    found: list[float] = []
    mean = weight = 0.0
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        found.append(mean / weight)
    return found


def draw_losses(path: Path, position: Position) -> None:
    """The training loss (smoothed, blue) and the validation loss (orange) over steps, as a PNG."""
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    training = [(float(i + 1), v) for i, v in enumerate(smoothed(position.losses))]
    validation = [(float(step), loss) for step, loss in position.validations]
    values = [v for _, v in (*training, *validation)]
    if values:
        low, high = min(values), max(values)
        span = (high - low) or 1.0
        last = max(1.0, float(position.step))

        def at(point: Point) -> Point:
            x = MARGIN + (SIZE[0] - 2 * MARGIN) * point[0] / last
            return x, SIZE[1] - MARGIN - (SIZE[1] - 2 * MARGIN) * (point[1] - low) / span

        for share in (0.0, 0.5, 1.0):
            value = low + share * span
            y = at((0.0, value))[1]
            pen.line([(MARGIN, y), (SIZE[0] - MARGIN, y)], fill="#dddddd")
            pen.text((4, y - 6), f"{value:.4f}", fill="#444444")
        pen.line([at(p) for p in training], fill="#2266cc", width=2)
        pen.line([at(p) for p in validation], fill="#ee7722", width=3)
        pen.text(
            (MARGIN, SIZE[1] - 30), f"steps 0 to {position.step}; blue: loss, orange: validation", "#444444"
        )
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_file(path, content.getvalue())
