"""Writes docs/reference/commands.md from the command line itself.

usage: .venv/bin/python scripts/index_commands.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from loraloom.cli.main import application

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
HEAD = """# Commands

Every command with its arguments and options, as `--help` says them. This page is written by
`scripts/index_commands.py`; a test fails when it is not current. What the exit codes mean:
[Using Loraloom](../usage.md).
"""


def page() -> str:
    root = typer.main.get_command(application(None, complete=True))
    return "\n".join([HEAD, *_sections("loraloom", root)])


def _sections(path: str, command: Any) -> Iterator[str]:
    """A section for each command, those of groups after their group."""
    context = command.make_context(path, [], resilient_parsing=True)
    subcommands = getattr(command, "commands", {})
    if path != "loraloom" and not subcommands:
        yield from _section(path, command, context)
    for name, inner in subcommands.items():
        yield from _sections(f"{path} {name}", inner)


def _section(path: str, command: Any, context: Any) -> Iterator[str]:
    records = [
        (one.param_type_name, one.get_help_record(context)) for one in command.params if not one.hidden
    ]
    arguments = [record for kind, record in records if kind == "argument"]
    options = [record for kind, record in records if kind == "option" and record[0] != "--help"]
    usage = [path, *(_placeholder(one) for one in command.params if one.param_type_name == "argument")]
    yield from (f"## {path}", "", f"`{' '.join(usage)} [OPTIONS]`", "")
    yield from (*(re.sub(r"\s*\n\s*", " ", part) for part in _paragraphs(command.help)), "")
    for heading, rows in (("argument", arguments), ("option", options)):
        if rows:
            yield from (f"| {heading} | what it says |", "|---|---|")
            yield from (f"| `{_name(name)}` | {_cell(about)} |" for name, about in rows)
            yield ""


def _placeholder(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    dots = "…" if argument.nargs != 1 else ""
    return name + dots if argument.required or name.startswith("[") else f"[{name}{dots}]"


def _paragraphs(text: str) -> Iterator[str]:
    for number, part in enumerate(inspect.cleandoc(text).split("\n\n")):
        if number:
            yield ""
        yield part


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _name(text: str) -> str:
    """ "--models <list[Path]>" → "--models <path>": a bar would end the table's cell."""
    return re.sub(r"list\[(\w+)\]", lambda found: found[1].lower(), text).replace("|", " or ")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
