"""The terminal as every command writes to it."""

from __future__ import annotations

from rich.console import Console


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints names as they are: `:fire:` in a file's name stays these six letters, and long
    lines are left to the terminal."""
    return Console(stderr=stderr, quiet=quiet, soft_wrap=stderr, emoji=False)
