"""The command `loraloom`: loads the command that was asked for; errors become messages and exit codes.

Only the module of that command is imported, so that light commands answer at once; `--help` knows the
others by their one line in `COMMANDS`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from loraloom import __version__
from loraloom.errors import Cancelled, LoraloomError, MissingModelsError


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is: a function in `loraloom.cli.MODULE`, or (`group`) a typer app of commands."""

    module: str
    name: str
    about: str
    group: bool = False

    def load(self) -> Any:
        return getattr(import_module(f"loraloom.cli.{self.module}"), self.name)


COMMANDS = {
    "demo": Command(
        "demo",
        "demo_command",
        "Draw one prompt with a LoRA and without it, on a small model that comes with Loraloom.",
    ),
    "run": Command(
        "run_command",
        "run_command",
        "Run a workflow: read it from SOURCE, draw its pictures, and say what each LoRA did.",
    ),
    "validate": Command(
        "workflow_commands",
        "validate_command",
        "Check workflows against the node classes and your model files, without running anything.",
    ),
    "convert": Command(
        "workflow_commands",
        "convert_command",
        "Print a workflow in ComfyUI's API format (with --workflow all: a JSON list of them).",
    ),
    "nodes": Command(
        "workflow_commands",
        "nodes_command",
        "List the node classes and which of them run here, or show one with its inputs and outputs.",
    ),
    "grid": Command(
        "grid",
        "grid_command",
        "Draw a workflow for every combination of some values, and a labelled contact sheet of them all.",
    ),
    "train": Command(
        "train",
        "train_command",
        "Train a LoRA. A run that was stopped goes on from its last saved state when started again.",
    ),
    "serve": Command(
        "serve", "serve_command", "Serve ComfyUI's HTTP interface, with a queue that survives crashes."
    ),
    "doctor": Command(
        "doctor.command",
        "doctor_command",
        "Check this installation: device, memory, folders, extras, versions, and what is slow and why.",
    ),
    "cluster": Command(
        "cluster",
        "cluster_app",
        "Let other machines drain a server's queue, and see what they do.",
        group=True,
    ),
    "lora": Command(
        "lora_commands", "lora_app", "Inspect, convert, merge, extract and resize LoRA files.", group=True
    ),
    "models": Command(
        "models_commands",
        "models_app",
        "List model files and the folders they belong in, and convert them.",
        group=True,
    ),
}


class _Interruptible(TyperGroup):
    """Ctrl-C anywhere in a command, also while it is still importing, is `Cancelled`: 130, not Click's 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Cancelled("stopped") from None


def application(asked: str | None, complete: bool = False) -> typer.Typer:
    """The command line with the command that was asked for, and the others by name only.

    complete: load them all, as shells' completion needs it."""
    app = typer.Typer(
        name="loraloom",
        cls=_Interruptible,
        help="Runs ComfyUI text-to-image workflows with LoRA, and says what every LoRA did.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, command in COMMANDS.items():
        if name != asked and not complete:
            app.command(name, help=command.about)(_unloaded)
        elif command.group:
            app.add_typer(command.load(), name=name)
        else:
            app.command(name)(command.load())
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the process ends with an exit code of `loraloom.errors`."""
    _say_every_character()
    sys.exit(exit_code_of(sys.argv[1:] if arguments is None else arguments))


def _say_every_character() -> None:
    """Files and pipes get UTF-8 on every system; a terminal, or an encoding that was asked for, gets escapes
    for what it cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            asked = stream.isatty() or "PYTHONIOENCODING" in os.environ
            stream.reconfigure(encoding=None if asked else "utf-8", errors="backslashreplace")


def exit_code_of(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; messages go to standard error."""
    asked = next((a for a in arguments if not a.startswith("-")), None)
    try:
        application(asked, complete="_LORALOOM_COMPLETE" in os.environ)(list(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return _say(Cancelled("stopped"))
    except LoraloomError as error:
        return _say(error)
    return 0


def _say(error: LoraloomError) -> int:
    from rich.markup import escape

    from loraloom.cli.console import open_console

    console = open_console(stderr=True)
    if isinstance(error, MissingModelsError):
        from loraloom.cli.workflow_commands import print_missing

        print_missing(console, error.missing)
        folder = error.missing[0].folder if error.missing else "KIND"
        console.print(
            f"Put the files into these folders (`loraloom models path {folder}` prints where), or name their "
            "place with --models DIR."
        )
    elif isinstance(error, Cancelled):
        console.print("stopped")
    else:
        console.print(f"[red]error:[/] {escape(str(error))}")
    return error.exit_code


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loraloom {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
) -> None:
    del version  # said by its callback


def _unloaded() -> None:
    """Stands for a command that was not asked for; never called."""
