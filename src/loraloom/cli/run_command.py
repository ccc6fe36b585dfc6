"""`loraloom run`: one command from workflow to picture."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.console import say
from loraloom.cli.device_check import check_devices
from loraloom.cli.display import Display
from loraloom.cli.environment import Environment, SessionOptions
from loraloom.cli.settings import (
    AttentionOption,
    CompatOption,
    CompileOption,
    CustomNodesOption,
    DeviceOption,
    DtypeOption,
    ExtraPathsOption,
    FastOption,
    InputDirOption,
    LoraOption,
    ModelsOption,
    NarrowOption,
    OutputDirOption,
    StorageOption,
    StrictLoraOption,
    VramOption,
    computing,
)
from loraloom.cli.workflow_commands import JsonOption, SeedOption, SetOption, SourceArgument, WorkflowOption
from loraloom.errors import LoraloomError, MissingModelsError
from loraloom.preparation.prepare import Changes
from loraloom.workflow.graph import Graph

if TYPE_CHECKING:
    from loraloom.result import Run


def run_command(
    source: SourceArgument,
    workflow: WorkflowOption = None,
    assignments: SetOption = None,
    loras: LoraOption = None,
    seed: SeedOption = None,
    models: ModelsOption = None,
    extra_paths: ExtraPathsOption = None,
    custom_nodes: CustomNodesOption = None,
    output_dir: OutputDirOption = Path("output"),
    input_dir: InputDirOption = Path("input"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    vram: VramOption = None,
    storage: StorageOption = "native",
    attention: AttentionOption = "auto",
    narrow_weights: NarrowOption = False,
    compiled: CompileOption = False,
    fast: FastOption = None,
    compat: CompatOption = "trainer",
    strict_lora: StrictLoraOption = False,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Write pictures without their workflow.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, run nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a workflow: read it from SOURCE, draw its pictures, and say what each LoRA did."""
    try:
        options = SessionOptions(
            models, extra_paths, custom_nodes, output_dir, input_dir,
            device, dtype, storage, compat, strict_lora, not no_metadata, vram,
            computing(attention, narrow_weights, compiled, fast),
        )  # fmt: skip
        environment = Environment(options)
        changes = Changes(loras or (), assignments or (), seed)
        graphs = environment.preparation.prepare(source, workflow, changes)
        if dry_run:
            check_devices([device], dtype, options.computing)
            _say_ready(graphs, as_json)
            return
        display = Display(quiet=as_json)
        results: list[Run] = []
        with stop_on_interrupt() as cancel, environment.session(graphs) as session:
            for graph in graphs:
                with display.running(graph):
                    results.append(session.run_prepared(graph, on_event=display.see, cancel=cancel))
                display.result(results[-1])
    except LoraloomError as error:
        if not as_json:
            raise
        typer.echo(json.dumps(error_json(error), indent=1))
        raise typer.Exit(error.exit_code) from error
    if as_json:
        objects = [result.to_json() for result in results]
        typer.echo(json.dumps(objects[0] if len(objects) == 1 else objects, indent=1))


def error_json(error: LoraloomError) -> dict[str, object]:
    """What `--json` prints for a run that failed; the keys of a run that did not, with `error` filled in."""
    details: dict[str, object] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, MissingModelsError):
        details["missing"] = [
            {"node": m.node_id, "folder": m.folder, "name": m.name, "nearest": m.nearest, "url": m.url}
            for m in error.missing
        ]
    return {"status": "failed", "outputs": [], "loras": [], "warnings": [], "timings": {}, "error": details}


def _say_ready(graphs: list[Graph], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_ready_json(graphs), indent=1))
        return
    for graph in graphs:
        for note in graph.notes:
            say(f"note: {note}", stderr=True)
        say(f"{graph.origin}: ready to run, {len(graph.nodes)} nodes", stderr=True)


def _ready_json(graphs: list[Graph]) -> dict[str, object]:
    notes = [list(graph.notes) for graph in graphs]
    return {"status": "valid", "workflows": [graph.to_api() for graph in graphs], "notes": notes}


@contextmanager
def stop_on_interrupt() -> Generator[threading.Event]:
    """Ctrl-C stops the run between two steps; a second one stops the program where it is."""
    cancel = threading.Event()

    def stop(*_: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        sys.stderr.write("\nstopping after this step (press again to stop at once)\n")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)
