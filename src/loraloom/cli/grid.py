"""`loraloom grid`: one workflow over all combinations of some values, as single pictures and a sheet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.display import Display
from loraloom.cli.environment import Environment, SessionOptions
from loraloom.cli.run_command import stop_on_interrupt
from loraloom.cli.server_jobs import ServerJobs, ServerOption, TokenOption
from loraloom.cli.settings import (
    AttentionOption,
    BatchOption,
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
    rows_at_once,
)
from loraloom.cli.workflow_commands import JsonOption, SeedOption, SetOption, SourceArgument, WorkflowOption
from loraloom.contact_sheet import (
    MAX_IN_CELL,
    Axis,
    combinations,
    contact_sheet_png,
    read_axis,
    side_by_side,
)
from loraloom.errors import InputError, LoraloomError
from loraloom.folders import ModelFolders
from loraloom.preparation.prepare import Changes, Preparation, changed, read_workflows
from loraloom.workflow.graph import JSON, Graph

if TYPE_CHECKING:
    import threading

    from PIL.Image import Image

    from loraloom.engine.events import Event
    from loraloom.result import Run
    from loraloom.session import Session


def grid_command(
    source: SourceArgument,
    axes: Annotated[
        list[str],
        typer.Option(
            "--axis",
            metavar="NODE.INPUT=A,B,C",
            help="Values of an input, or 0..1/5 for five numbers from 0 to 1; a value with a comma in double "
            "quotes. Several axes combine; the last one goes across the sheet.",
        ),
    ],
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
    batch: BatchOption = "auto",
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a workflow for every combination of some values, and a labelled contact sheet of them all."""
    rows = rows_at_once(batch)
    spread = [read_axis(text) for text in axes]
    chosen = combinations(spread)
    options = SessionOptions(
        models,
        extra_paths,
        custom_nodes,
        output_dir,
        input_dir,
        device,
        dtype,
        storage,
        compat,
        strict_lora,
        vram=vram,
        computing=computing(attention, narrow_weights, compiled, fast),
    )
    if server is not None:
        changes = Changes(loras or (), assignments or (), seed)
        _drawn_elsewhere(
            ServerJobs.reached(server, token), source, workflow, changes, spread, output_dir, as_json
        )
        return
    environment = Environment(options)
    preparation = environment.preparation
    graph = _one(preparation.prepare(source, workflow, Changes(loras or (), assignments or (), seed)))
    cells = [
        preparation.changed(
            graph, Changes(set=[f"{a.target}={v}" for a, v in zip(spread, cell, strict=True)])
        )
        for cell in chosen
    ]
    display = Display(quiet=as_json)
    pictures: list[Image] = []
    paths: list[str] = []
    batches: list[dict[str, JSON]] = []
    with stop_on_interrupt() as cancel, environment.session([graph]) as session:
        for result in _drawn(session, cells, chosen, rows, display, cancel):
            if not result.images:
                raise LoraloomError("the workflow saves no picture: a grid needs a SaveImage node")
            if len(result.images) > MAX_IN_CELL:
                display.say(f"the sheet shows the first {MAX_IN_CELL} of its {len(result.images)} pictures")
            pictures.append(side_by_side(result.images))
            paths += [str(o.path) for o in result.outputs if o.width]
            batches += [{"picture": len(pictures), **said} for said in result.batches]
        sheet = session.services.output.save("grid", ".png", contact_sheet_png(pictures, spread))
    if as_json:
        said = {"status": "done", "sheet": str(sheet.path), "pictures": paths, "batches": batches}
        typer.echo(json.dumps(said, indent=1))
    else:
        _say_batches(display, batches)
        display.say(f"contact sheet: {sheet.path}")


def _drawn_elsewhere(
    server: ServerJobs,
    source: str,
    workflow: str | None,
    changes: Changes,
    axes: Sequence[Axis],
    output_dir: Path,
    as_json: bool,
) -> None:
    """The grid by the workers of a server, which checks the workflow; the sheet is written here."""
    from loraloom.runtime.output_files import OutputFolder
    from loraloom.workflow.implemented import implemented_schemas

    known = Preparation(implemented_schemas(), ModelFolders([])).known
    graph = _one([graph for _, graph in read_workflows(source, workflow, changes, known)])
    chosen = combinations(axes)
    cells = [
        changed(graph, Changes(set=[f"{a.target}={v}" for a, v in zip(axes, cell, strict=True)]), known)
        for cell in chosen
    ]
    display = Display(quiet=as_json)
    pictures: list[Image] = []
    urls: list[str] = []
    with stop_on_interrupt() as cancel:
        for job, images in server.drawn(cells, cancel):
            if not images:
                raise LoraloomError("the workflow saves no picture: a grid needs a SaveImage node")
            display.say(f"picture {len(pictures) + 1} of {len(cells)}: {', '.join(chosen[len(pictures)])}")
            pictures.append(side_by_side(images))
            urls += [server.url.rstrip("/") + f["url"] for f in job["outputs"] if f["type"] == "output"]
    sheet = OutputFolder(output_dir).save("grid", ".png", contact_sheet_png(pictures, axes))
    if as_json:
        typer.echo(json.dumps({"status": "done", "sheet": str(sheet.path), "pictures": urls}, indent=1))
    else:
        display.say(f"contact sheet: {sheet.path}")


def _drawn(
    session: Session,
    cells: Sequence[Graph],
    chosen: Sequence[Sequence[str]],
    rows: int,
    display: Display,
    cancel: threading.Event,
) -> Iterator[Run]:
    """What the cells give, in their order, so many of them as rows of common batches. Raises what the first
    of them failed with, once the others are done."""
    for begin in range(0, len(cells), rows):
        some = cells[begin : begin + rows]
        for number in range(begin, begin + len(some)):
            display.say(f"picture {number + 1} of {len(cells)}: {', '.join(chosen[number])}")
        with display.running(some[0]):
            if len(some) == 1:
                yield session.run_prepared(some[0], on_event=display.see, cancel=cancel)
                continue

            def see(row: int, event: Event, begin: int = begin) -> None:
                display.see_row(f"picture {begin + row + 1}", event)

            results = session.run_together(some, on_event=see, cancel=cancel)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        yield from (result for result in results if not isinstance(result, BaseException))


def _say_batches(display: Display, batches: Sequence[Mapping[str, JSON]]) -> None:
    """How the pictures were drawn together, those in one line that were alike."""
    alike: dict[tuple[JSON, JSON], list[JSON]] = {}
    for said in batches:
        alike.setdefault((said["rows"], said["loras"]), []).append(said["picture"])
    for (rows, loras), numbers in alike.items():
        of = ", ".join(map(str, numbers))
        display.say(f"pictures {of}, up to {rows} at a time: {loras}")


def _one(graphs: list[Graph]) -> Graph:
    if len(graphs) != 1:
        raise InputError("a grid is made of one workflow; choose it with --workflow N")
    return graphs[0]
