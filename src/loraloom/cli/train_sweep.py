"""Several trainings: one after another here, or as jobs of a server's queue; their losses side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from loraloom.cli.console import open_console
from loraloom.cli.run_command import stop_on_interrupt
from loraloom.cli.server_jobs import ServerJobs
from loraloom.cli.train import as_told, run_training
from loraloom.errors import Cancelled, LoraloomError
from loraloom.training.sweep import Combination

if TYPE_CHECKING:
    from rich.console import Console

    from loraloom.training.train import Trained


@dataclass(frozen=True, slots=True)
class Row:
    """A run and what it gave, or why it gave nothing."""

    run: Combination
    trained: Trained | None = None
    error: str = ""

    def to_json(self) -> dict[str, object]:
        gave = {"status": "failed", "error": self.error} if self.trained is None else as_told(self.trained)
        return {"values": self.run.values, **gave}


def run_sweep(
    runs: Sequence[Combination], log: Path | None, server: ServerJobs | None, as_json: bool
) -> None:
    """Train all, here or on a server's workers, and show their losses. One that fails does not stop the
    others; those that are done already are not trained again. Raises LoraloomError where some failed."""
    console = open_console(stderr=True, quiet=as_json)
    done = _here(runs, log, console, as_json) if server is None else _elsewhere(runs, server, console)
    rows = [*done]
    if as_json:
        typer.echo(json.dumps({"runs": [row.to_json() for row in rows]}, indent=1))
    else:
        console.print(table(rows))
        console.print(f"LoRAs are in the folders of {escape(str(runs[0].settings.output.parent))}")
    if failed := sum(row.trained is None for row in rows):
        raise LoraloomError(f"{failed} of {len(rows)} runs failed; started again, only they run")


def _here(runs: Sequence[Combination], log: Path | None, console: Console, quiet: bool) -> Iterator[Row]:
    from loraloom.training.train import finished

    for number, run in enumerate(runs, 1):
        known = finished(run.settings)
        said = ": done already" if known else ""
        console.print(f"[bold]{number} of {len(runs)}[/] {escape(run.title)}{said}")
        if known is None:
            own_log = None if log is None else log.with_stem(f"{log.stem}-{run.settings.output.name}")
            try:
                known = run_training(run.settings, own_log, quiet)
            except Cancelled:
                raise
            except LoraloomError as error:
                console.print(f"[red]failed:[/] {escape(str(error))}")
                yield Row(run, error=str(error))
                continue
        yield Row(run, known)


def _elsewhere(runs: Sequence[Combination], server: ServerJobs, console: Console) -> Iterator[Row]:
    from loraloom.cli.train_elsewhere import trained_elsewhere

    with stop_on_interrupt() as cancel:
        for number, (run, gave) in enumerate(trained_elsewhere(server, runs, cancel), 1):
            failed = isinstance(gave, LoraloomError)
            said = f"[red]failed:[/] {escape(str(gave))}" if failed else "done"
            console.print(f"[bold]{number} of {len(runs)}[/] {escape(run.title)}: {said}")
            yield Row(run, error=str(gave)) if isinstance(gave, LoraloomError) else Row(run, gave)


def table(rows: Sequence[Row]) -> Table:
    """What runs were told and their losses; the lowest is marked."""
    keys = [*rows[0].run.values]
    found = Table(*(key.rpartition(".")[2] for key in keys), "loss", "validation", "", "folder", box=None)
    measured = [row.trained for row in rows if row.trained is not None]
    best = min(measured, key=_loss, default=None)
    for row in rows:
        values = [escape(str(row.run.values[key])) for key in keys]
        if row.trained is None:
            found.add_row(*values, "[red]failed[/]")
            continue
        validation = "" if row.trained.validation is None else f"{row.trained.validation:.4f}"
        mark = "[green]lowest[/]" if row.trained is best and len(rows) > 1 else ""
        folder = escape(row.run.settings.output.name)
        found.add_row(*values, f"{row.trained.loss:.4f}", validation, mark, folder)
    return found


def _loss(trained: Trained) -> float:
    """The one that tells runs apart: of pictures that were not trained on, where there are any."""
    return trained.loss if trained.validation is None else trained.validation
