"""`loraloom doctor`: looks, says what it finds, and ends with 1 where something does not work."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from loraloom import __version__
from loraloom.cli.console import open_console
from loraloom.cli.doctor import machine, packages
from loraloom.cli.doctor.devices import Asked, judged
from loraloom.cli.doctor.finding import Finding, Level
from loraloom.cli.settings import ExtraPathsOption, ModelsOption
from loraloom.folders import model_folders

_COLOURS: dict[Level, str] = {"ok": "green", "note": "cyan", "slow": "yellow", "problem": "red"}
_INDENT = " " * 9


def doctor_command(
    models: ModelsOption = None,
    extra_model_paths: ExtraPathsOption = None,
    output_dir: Annotated[Path, typer.Option(help="Where pictures will go.")] = Path("output"),
    user_dir: Annotated[Path, typer.Option(help="Where `serve` keeps its queue.")] = Path("user"),
    ask_torch: Annotated[
        bool, typer.Option("--torch/--no-torch", help="Ask torch for its devices, in a process of its own.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check this installation: device, memory, folders, extras, versions, and what is slow and why."""
    console = open_console(quiet=as_json)
    console.print(f"Loraloom {__version__}", highlight=False)
    asked = Asked() if ask_torch else None
    try:
        installed = packages.look()
        found = list(_without_torch(installed, models, extra_model_paths, output_dir, user_dir))
        _show(console, found)
        said = None if asked is None else asked.answer()
    finally:
        if asked is not None:
            asked.end()
    if said is not None:
        late = [said] if isinstance(said, Finding) else judged(said, machine.cards())
        _show(console, late)
        found += late
    problems = sum(finding.level == "problem" for finding in found)
    if as_json:
        described: dict[str, Any] = {
            "loraloom": __version__,
            "ok": not problems,
            "findings": [finding.to_json() for finding in found],
            "packages": dict(installed.required),
            "extras": dict(installed.extras),
            "torch": said if isinstance(said, dict) else None,
        }
        typer.echo(json.dumps(described, indent=1))
    console.print(_verdict(problems, sum(finding.level == "slow" for finding in found)))
    if problems:
        raise typer.Exit(1)


def _without_torch(
    installed: packages.Packages,
    models: list[Path] | None,
    extra_paths: list[Path] | None,
    output_dir: Path,
    user_dir: Path,
) -> Iterator[Finding]:
    yield from machine.python()
    yield from installed.findings
    yield from machine.memory(machine.container_memory())
    yield from machine.models(model_folders(models, extra_paths))
    yield machine.writable("output", output_dir)
    yield machine.writable("user", user_dir)
    yield from machine.long_paths(machine.limits_paths())
    yield from machine.brakes(os.environ)


def _show(console: Console, findings: list[Finding]) -> None:
    for finding in findings:
        colour = _COLOURS[finding.level]
        text = f"[{colour}]{finding.level:8}[/] [bold]{escape(finding.about)}[/]: {escape(finding.text)}"
        console.print(text, highlight=False, soft_wrap=True)
        if finding.advice:
            console.print(f"{_INDENT}→ {escape(finding.advice)}", highlight=False, soft_wrap=True)


def _verdict(problems: int, slow: int) -> str:
    if problems:
        return f"{problems} problem{'s' if problems > 1 else ''}: see the advice above."
    return (
        "Everything works."
        if not slow
        else f"Everything works; {slow} of the above make{'s' if slow == 1 else ''} it slower."
    )
