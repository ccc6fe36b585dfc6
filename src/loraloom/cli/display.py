"""What a person sees of a run: progress bars per node, receipts, the pictures' paths. All on standard error.

On a terminal the bars move; elsewhere (a log, a pipe) plain lines say when a node starts and how it ended.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from loraloom.cli.console import open_console
from loraloom.engine.events import Event, NodeFinished, NodeProgress, NodeStarted, NodeWarning
from loraloom.result import Run
from loraloom.workflow.graph import Graph


class Display:
    """Shows runs on standard error. quiet: nothing but the bars' absence (for `--json`)."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = open_console(stderr=True, quiet=quiet)
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._graph: Graph | None = None
        self._row = ""

    @contextmanager
    def running(self, graph: Graph) -> Generator[None]:
        """Show a run of this graph; its events go to `see`."""
        self._graph = graph
        self._bars = {}
        for note in graph.notes:
            self._console.print(f"[dim]note: {escape(note)}[/]")
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        moving = self._console.is_terminal and not self._console.quiet
        self._progress = Progress(*columns, console=self._console, transient=True) if moving else None
        if self._progress is None:
            yield
            return
        with self._progress:
            yield

    def see(self, event: Event) -> None:
        """Show one event of a run."""
        match event:
            case NodeStarted(node_id, _, class_type, title):
                self._start(node_id, title or class_type)
            case NodeProgress(node_id):
                self._advance(node_id, event.value, event.total)
            case NodeFinished(node_id) if self._progress is not None and self._row + node_id in self._bars:
                self._progress.remove_task(self._bars.pop(self._row + node_id))
            case NodeWarning(node_id, message):
                self._console.print(f"[yellow]warning[/] {escape(self._label(node_id))}: {escape(message)}")
            case _:
                pass

    @property
    def quiet(self) -> bool:
        """Whether nothing is shown."""
        return self._console.quiet

    def see_row(self, row: str, event: Event) -> None:
        """Show an event of one of several runs of graphs like this one; row: what that run is called."""
        self._row = f"{row}, "
        try:
            self.see(event)
        finally:
            self._row = ""

    def say(self, message: str) -> None:
        self._console.print(escape(message))

    def result(self, run: Run) -> None:
        """Say what a finished run gave: receipts, pictures, time."""
        if run.receipts:
            print_receipts(self._console, run.receipts)
        for output in run.outputs:
            size = f"  [dim]{output.width}×{output.height}[/]" if output.width else ""
            self._console.print(f"[green]{escape(str(output.path))}[/]{size}")
        self._console.print(f"[dim]{run.timings['total']:.1f} s[/]")

    def _start(self, node_id: str, title: str) -> None:
        if self._progress is None:
            self._console.print(f"{escape(self._row)}node {escape(node_id)} {escape(title)}")
            return
        name = f"{self._row}{node_id} {title}"
        self._bars[self._row + node_id] = self._progress.add_task(name, total=None, speed="")

    def _advance(self, node_id: str, value: float, total: float) -> None:
        if self._progress is None:
            if value in (1, total) or int(value) % max(1, int(total) // 5) == 0:
                said = f"{self._row}node {node_id} step {value:g} of {total:g}"
                self._console.print(escape(said))
            return
        task = next(t for t in self._progress.tasks if t.id == self._bars[self._row + node_id])
        speed = f"{task.elapsed / value:.2f} s/it" if task.elapsed and value else ""
        self._progress.update(task.id, completed=value, total=total, speed=speed)

    def _label(self, node_id: str) -> str:
        node = self._graph.nodes.get(node_id) if self._graph else None
        return self._row + (node.label() if node else f"node {node_id}")


def print_receipts(console: Console, receipts: tuple[dict[str, Any], ...]) -> None:
    """The LoRA receipts of a run: a table on a terminal, a line each elsewhere."""
    rows = [_cells(receipt) for receipt in receipts]
    if not console.is_terminal:
        for name, *cells in rows:
            said = [f"{heading} {cell}" for heading, cell in zip(HEADINGS[1:], cells, strict=True) if cell]
            console.print(escape(f"LoRA {name}: {'; '.join(said)}"))
        return
    table = Table(title="LoRA receipts")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row, receipt in zip(rows, receipts, strict=True):
        table.add_row(*map(escape, row), style="" if receipt["complete"] else "yellow")
    console.print(table)


HEADINGS = ("LoRA", "strength", "placed", "left out", "not placed", "‖ΔW‖/‖W‖", "format")


def _cells(receipt: Mapping[str, Any]) -> tuple[str, ...]:
    left_out = receipt.get("left_out") or sum(len(entry["modules"]) for entry in receipt.get("ignored", ()))
    lost = len(receipt["unplaced"]) + len(receipt["rejected"]) + len(receipt["unknown"])
    strengths = {part: receipt.get(f"strength_{part}") for part in ("model", "clip")}
    said = [f"{part} {value:g}" for part, value in strengths.items() if value is not None]
    said += [f"{e['strength']:g} from {e['start_percent']:.0%}" for e in receipt.get("schedule", ())]
    return (
        str(receipt["name"]),
        ", ".join(said),
        "" if receipt.get("left_out") else f"{receipt['matched']}/{receipt['total']}",
        str(left_out or ""),
        str(lost or ""),
        ", ".join(f"{e['component']} {e['relative']:.2g}" for e in receipt.get("effects", ())),
        str(receipt["dialect"]),
    )
