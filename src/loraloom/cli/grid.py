"""`loraloom grid`: one workflow over all combinations of some values, as single pictures and a sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.display import Display
from loraloom.cli.environment import Environment, SessionOptions
from loraloom.cli.run_command import stop_on_interrupt
from loraloom.cli.settings import (
    CompatOption,
    CustomNodesOption,
    DeviceOption,
    DtypeOption,
    ExtraPathsOption,
    InputDirOption,
    LoraOption,
    ModelsOption,
    OutputDirOption,
    StorageOption,
    StrictLoraOption,
    VramOption,
)
from loraloom.cli.workflow_commands import JsonOption, SeedOption, SetOption, SourceArgument, WorkflowOption
from loraloom.contact_sheet import (
    MAX_IN_CELL,
    combinations,
    contact_sheet_png,
    read_axis,
    side_by_side,
)
from loraloom.errors import InputError, LoraloomError
from loraloom.preparation.prepare import Changes
from loraloom.workflow.graph import Graph

if TYPE_CHECKING:
    from PIL.Image import Image


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
    compat: CompatOption = "trainer",
    strict_lora: StrictLoraOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a workflow for every combination of some values, and a labelled contact sheet of them all."""
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
    )
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
    with stop_on_interrupt() as cancel, environment.session() as session:
        for number, cell in enumerate(cells, 1):
            display.say(f"picture {number} of {len(cells)}: {', '.join(chosen[number - 1])}")
            with display.running(cell):
                result = session.run_prepared(cell, on_event=display.see, cancel=cancel)
            if not result.images:
                raise LoraloomError("the workflow saves no picture: a grid needs a SaveImage node")
            if len(result.images) > MAX_IN_CELL:
                display.say(f"the sheet shows the first {MAX_IN_CELL} of its {len(result.images)} pictures")
            pictures.append(side_by_side(result.images))
            paths += [str(o.path) for o in result.outputs if o.width]
        sheet = session.services.output.save("grid", ".png", contact_sheet_png(pictures, spread))
    if as_json:
        typer.echo(json.dumps({"status": "done", "sheet": str(sheet.path), "pictures": paths}, indent=1))
    else:
        display.say(f"contact sheet: {sheet.path}")


def _one(graphs: list[Graph]) -> Graph:
    if len(graphs) != 1:
        raise InputError("a grid is made of one workflow; choose it with --workflow N")
    return graphs[0]
