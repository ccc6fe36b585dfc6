"""The terminal as every command writes to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from loraloom.visible import visible, visible_json


class _Console(Console):
    """Shows what a terminal would act upon, wherever it comes from."""

    def render_str(self, text: str, **options: Any) -> Text:
        # Rich drops some of these characters without a word.
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints names as they are: `:fire:` in a file's name stays these six letters, and long
    lines are left to the terminal."""
    return _Console(stderr=stderr, quiet=quiet, soft_wrap=stderr, emoji=False)


def say(text: object, *, stderr: bool = False) -> None:
    """A line: on a terminal what can be shown, in a file or pipe exactly the text."""
    stream = sys.stderr if stderr else sys.stdout
    typer.echo(visible(str(text)) if stream.isatty() else str(text), err=stderr)


def say_json(value: object, *, indent: int = 1) -> None:
    """JSON with every letter as it is, without what a terminal would act upon."""
    typer.echo(visible_json(json.dumps(value, indent=indent, ensure_ascii=False)))
