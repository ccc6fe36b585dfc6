"""`loraloom models`: which model files there are, and where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from loraloom.cli.console import open_console
from loraloom.cli.settings import ModelsOption
from loraloom.folders import model_folders

models_app = typer.Typer(help="List model files and the folders they belong in.", no_args_is_help=True)


@models_app.command("list")
def list_models(
    kind: Annotated[str | None, typer.Argument(help="One kind only, such as loras.")] = None,
    models: ModelsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the model files of every kind, as workflows name them."""
    folders = model_folders(models)
    found = {k: folders.list(k) for k in ([kind] if kind else folders.kinds())}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    table = Table("kind", "name", "size", box=None)
    for name_of_kind, names in found.items():
        for name in names:
            table.add_row(name_of_kind, escape(name), _size(folders.resolve(name_of_kind, name)))
    open_console().print(table)
    if not any(found.values()):
        roots = ", ".join(str(r) for r in folders.roots)
        open_console(stderr=True).print(
            f"No model files under {escape(roots)}. Give the folder with --models DIR."
        )


@models_app.command("path")
def model_path(
    kind: Annotated[str, typer.Argument(help="checkpoints, loras, vae, text_encoders, diffusion_models …")],
    models: ModelsOption = None,
) -> None:
    """Print the folders in which files of a kind are looked for, whether they exist or not."""
    for directory in model_folders(models).searched(kind):
        typer.echo(directory)


def _size(path: Path) -> str:
    size = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
