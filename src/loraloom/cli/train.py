"""`loraloom train`: from a settings file, or from a folder of pictures and a base, to a LoRA."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loraloom.cli.console import open_console
from loraloom.cli.server_jobs import ServerJobs, ServerOption, TokenOption
from loraloom.errors import Cancelled, InputError
from loraloom.training.settings import Settings
from loraloom.training.sweep import Combination, combinations, read_values
from loraloom.training.toml import parse, stated_in

if TYPE_CHECKING:
    from loraloom.training.loop import StepReport
    from loraloom.training.session import Session
    from loraloom.training.train import Trained

LINE_EVERY = 50
"""Steps between lines where standard error is no terminal."""


def train_command(
    config: Annotated[
        Path | None, typer.Argument(help="Settings of the run, as TOML.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of pictures, instead of a settings file.")] = None,
    base: Annotated[Path | None, typer.Option(help="Checkpoint to train on, with --data.")] = None,
    trigger: Annotated[str, typer.Option(help="Word that calls the LoRA, with --data.")] = "",
    name: Annotated[str, typer.Option(help="Name of the LoRA, with --data.")] = "lora",
    output: Annotated[Path, typer.Option(help="Folder of the run, with --data.")] = Path("training"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, with --data.")] = 1000,
    resolution: Annotated[int, typer.Option(min=16, help="Side of the pictures, with --data.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    log: Annotated[
        Path | None, typer.Option(help="Append the numbers of every step to this file, as lines of JSON.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,C",
            help="Values of a setting, such as adapter.rank=4,16: one run for each; several combine.",
        ),
    ] = None,
    draw: Annotated[
        int | None,
        typer.Option("--random", min=1, metavar="N", help="Run N of the combinations, drawn at random."),
    ] = None,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Train a LoRA. A run that was stopped goes on from its last saved state when started again."""
    if config is not None:
        if data is not None or base is not None:
            raise InputError("give a settings file, or --data and --base, not both")
        stated, folder = stated_in(config), config.parent
    else:
        if data is None or base is None:
            raise InputError("give a settings file, or both --data FOLDER and --base CHECKPOINT")
        told: dict[str, object] = {
            "name": name,
            "output": str(output / name),
            "model": {"checkpoint": str(base)},
            "data": [{"folder": str(data), "trigger": trigger}],
            "run": {"steps": steps, "resolution": resolution},
        }
        stated, folder = nullcontext(told), Path()
    with stated as said:
        runs = combinations(said, folder, read_values(sweep or ()), draw)
        if not runs and draw is not None:
            raise InputError("--random draws from a sweep: give --sweep KEY=A,B,C, or a table [sweep]")
        alone = None if runs else parse(said, Settings, folder)
    if alone is not None and server is None:
        trained = run_training(alone, log)
        if as_json:
            typer.echo(json.dumps(as_told(trained)))
        return
    from loraloom.cli.train_sweep import run_sweep

    runs = runs if alone is None else [Combination({}, alone.name, alone)]
    run_sweep(runs, log, None if server is None else ServerJobs.reached(server, token), as_json)


def run_training(settings: Settings, log: Path | None, quiet: bool = False) -> Trained:
    """Train with a progress bar on a terminal, with lines elsewhere. Ctrl+C stops after the current step.

    quiet: nothing is said on the way."""
    from loraloom.training.samples import sample_paths
    from loraloom.training.train import train

    stop = _Stop()

    console = open_console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task(settings.name, total=settings.run.steps, loss="-")

        def ready(session: Session, step: int) -> None:
            stop.after_steps()
            count = len(session.split.training)
            layers = sum(len(adapter.modules) for adapter in session.adapters.values())
            for remark in session.remarks:
                console.print(f"[yellow]note:[/] {escape(remark)}")
            begins = f", going on from step {step}" if step else ""
            console.print(
                f"{session.handles.model.family.title}: {count} pictures, {layers} layers"
                f" as {settings.adapter.kind}{begins}"
            )
            progress.update(bar, completed=step)

        def stepped(report: StepReport) -> None:
            progress.update(bar, completed=report.step, loss=f"{report.loss:.4f}")
            said = report.validation is not None or report.step % LINE_EVERY == 0
            if said and (report.validation is not None or not console.is_terminal):
                measured = "" if report.validation is None else f", validation {report.validation:.4f}"
                best = " (best so far)" if report.is_best else ""
                console.print(f"step {report.step}/{report.steps}: loss {report.loss:.4f}{measured}{best}")
            for path in sample_paths(settings, report.step):
                console.print(f"sample: {escape(str(path))}")
            if log is not None:
                write_step(log, report)
            if stop.wanted:
                raise KeyboardInterrupt

        try:
            trained = train(settings, stepped, ready)
        except KeyboardInterrupt:
            states = settings.output / "states"
            raise Cancelled(f"stopped; the run goes on from its last state in {states}") from None
        finally:
            stop.at_once()
    for path in (trained.lora, trained.diffusers, trained.best, trained.curve):
        if path is not None:
            console.print(escape(str(path)))
    return trained


def write_step(log: Path, report: StepReport) -> None:
    """Append a step's numbers to a file, as a line of JSON."""
    told = {"step": report.step, "steps": report.steps, "loss": report.loss, "rate": report.rate,
            "seconds": round(report.seconds, 4)}  # fmt: skip
    if report.validation is not None:
        told["validation"] = report.validation
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(told) + "\n")


class _Stop:
    """The first Ctrl+C during the steps waits for the end of the present one; every other stops at once."""

    def __init__(self) -> None:
        self.wanted = False
        self._before = signal.getsignal(signal.SIGINT)

    def after_steps(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._hear)

    def at_once(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def _hear(self, _number: int, _frame: object) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


def as_told(trained: Trained) -> dict[str, object]:
    """What a run gave, for JSON."""
    return {
        "status": "done",
        "lora": str(trained.lora),
        "diffusers": None if trained.diffusers is None else str(trained.diffusers),
        "best": None if trained.best is None else str(trained.best),
        "curve": str(trained.curve),
        "steps": trained.steps,
        "loss": trained.loss,
        "validation": trained.validation,
    }
