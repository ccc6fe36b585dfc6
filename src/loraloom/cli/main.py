"""The command `loraloom`: registers the commands and turns errors into messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from loraloom import __version__
from loraloom.cli.grid import grid_command
from loraloom.cli.lora_commands import lora_app
from loraloom.cli.models_commands import models_app
from loraloom.cli.run_command import run_command
from loraloom.cli.serve import serve_command
from loraloom.cli.train import train_command
from loraloom.cli.workflow_commands import (
    convert_command,
    missing_table,
    nodes_command,
    validate_command,
)
from loraloom.errors import Cancelled, LoraloomError, MissingModelsError

app = typer.Typer(
    name="loraloom",
    help="Runs ComfyUI text-to-image workflows with LoRA, and says what every LoRA did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run_command)
app.command("validate")(validate_command)
app.command("convert")(convert_command)
app.command("nodes")(nodes_command)
app.command("grid")(grid_command)
app.command("train")(train_command)
app.command("serve")(serve_command)
app.add_typer(lora_app, name="lora")
app.add_typer(models_app, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loraloom {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
) -> None:
    del version  # said by its callback


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the process ends with an exit code of `loraloom.errors`."""
    sys.exit(exit_code_of(arguments))


def exit_code_of(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; messages go to standard error."""
    console = Console(stderr=True, soft_wrap=True)
    try:
        app(None if arguments is None else list(arguments))
    except MissingModelsError as error:
        console.print(missing_table(error.missing))
        console.print("Put the files into these folders, or name their place with --models DIR.")
        return error.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (Cancelled, KeyboardInterrupt):
        console.print("stopped")
        return Cancelled.exit_code
    except LoraloomError as error:
        console.print(f"[red]error:[/] {escape(str(error))}")
        return error.exit_code
    return 0
