"""`loraloom run`: one command from workflow to picture."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loraloom.cli.display import Display
from loraloom.cli.lora_notes import lora_notes, with_renamed_loras
from loraloom.cli.settings import CustomNodesOption, ExtraPathsOption, ModelsOption
from loraloom.cli.workflow_commands import (
    JsonOption,
    SeedOption,
    SetOption,
    SourceArgument,
    WorkflowOption,
    chosen_graphs,
)
from loraloom.engine.node import NodeType
from loraloom.engine.validation import ClassChecks
from loraloom.errors import LoraloomError, MissingModelsError
from loraloom.folders import ModelFolders, model_folders
from loraloom.packs.load import load_packs
from loraloom.workflow.graph import Graph
from loraloom.workflow.implemented import implemented_schemas, known_schemas
from loraloom.workflow.insert_lora import insert_loras, read_lora_choice
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.validate import validate

if TYPE_CHECKING:
    from loraloom.outcome import Run

LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:MODEL[:CLIP]]",
        help="Put a LoRA right behind the model's loader. May be given several times.",
        show_default=False,
    ),
]


def run_command(
    source: SourceArgument,
    workflow: WorkflowOption = None,
    assignments: SetOption = None,
    loras: LoraOption = None,
    seed: SeedOption = None,
    models: ModelsOption = None,
    extra_paths: ExtraPathsOption = None,
    custom_nodes: CustomNodesOption = None,
    output_dir: Annotated[Path, typer.Option(help="Where pictures go.")] = Path("output"),
    input_dir: Annotated[Path, typer.Option(help="Where LoadImage finds pictures.")] = Path("input"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="Type to compute in. auto: bf16 where the device computes it natively, else fp32."),
    ] = "auto",
    compat: Annotated[
        Literal["trainer", "comfyui"],
        typer.Option(help="Whose result to give where ComfyUI computes a LoRA differently from its trainer."),
    ] = "trainer",
    strict_lora: Annotated[
        bool, typer.Option("--strict-lora", help="Fail when any key of a LoRA finds no place.")
    ] = False,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Write pictures without their workflow.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, run nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a workflow: read it from SOURCE, draw its pictures, and say what each LoRA did."""
    try:
        folders = model_folders(models, extra_paths, input_dir)
        packs = load_packs(custom_nodes or (), folders=folders, output_dir=output_dir)
        for failure in packs.failed:
            typer.echo(f"warning: {failure}", err=True)
        graphs = prepared_graphs(source, workflow, assignments, seed, loras or [], folders, packs.nodes)
        if dry_run:
            _say_ready(graphs, as_json)
            return
        display = Display(quiet=as_json)
        results: list[Run] = []
        from loraloom.session import Session

        with (
            stop_on_interrupt() as cancel,
            Session(
                models,
                extra_model_paths=extra_paths or (),
                output_dir=output_dir,
                input_dir=input_dir,
                device=device,
                dtype=dtype,
                compat=compat,
                strict_lora=strict_lora,
                metadata=not no_metadata,
                custom_nodes=packs,
            ) as session,
            # What packs print is no part of the result.
            redirect_stdout(sys.stderr) if packs.nodes else nullcontext(),
        ):
            for graph in graphs:
                with display.running(graph):
                    results.append(session.run(graph, on_event=display.see, cancel=cancel))
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


def prepared_graphs(
    source: str,
    workflow: str | None,
    assignments: list[str] | None,
    seed: int | None,
    loras: list[str],
    folders: ModelFolders,
    packs: Mapping[str, NodeType] | None = None,
) -> list[Graph]:
    """The graphs to run, checked before torch is loaded: what is wrong is said at once.

    packs: the classes of node packs."""
    graphs: list[Graph] = []
    choices = [read_lora_choice(text) for text in loras]
    foreign = {name: kind.schema for name, kind in (packs or {}).items()}
    known: Mapping[str, NodeSchema] = {**known_schemas(), **foreign} if foreign else known_schemas()
    for _, graph in chosen_graphs(source, workflow, assignments, seed, known):
        graph = with_renamed_loras(insert_loras(graph, known, choices), folders)
        schemas = {**implemented_schemas(), **foreign}
        report = validate(graph, schemas, folders.list, own=ClassChecks(packs or {}))
        report.raise_if_bad()
        hints = lora_notes(report.graph, folders)
        graphs.append(replace(report.graph, notes=(*report.graph.notes, *report.notes, *hints)))
    return graphs


def _say_ready(graphs: list[Graph], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"status": "valid", "workflows": [g.to_api() for g in graphs]}, indent=1))
        return
    for graph in graphs:
        for note in graph.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(f"{graph.origin}: ready to run, {len(graph.nodes)} nodes", err=True)


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
