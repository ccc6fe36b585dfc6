"""`loraloom validate`, `convert` and `nodes`: everything that needs no tensors, and never imports torch.

Each is a plain typer command; `cli.main` registers them. Errors are raised as they are: `cli.main` prints
them and turns them into exit codes. Tables go to standard error, results to standard output.
"""

from __future__ import annotations

import json
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loraloom.atomic_file import write_file
from loraloom.cli.console import open_console, say_json
from loraloom.cli.settings import ExtraPathsOption, ModelsOption
from loraloom.errors import InputError, MissingModel
from loraloom.folders import model_folders
from loraloom.preparation.lora_notes import lora_notes
from loraloom.preparation.prepare import Changes, Preparation, read_workflows
from loraloom.workflow.graph import JSON
from loraloom.workflow.implemented import implemented_schemas, known_schemas
from loraloom.workflow.report import Report
from loraloom.workflow.schema import Input, NodeSchema
from loraloom.workflow.sources import Found

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Workflow JSON (of the editor or in API format), a PNG, WebP or JPEG that carries one, a page "
        "that prints one, or - for standard input.",
        show_default=False,
    ),
]
WorkflowOption = Annotated[
    str | None,
    typer.Option("--workflow", metavar="N|all", help="Which workflow, if the source holds several."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NODE.INPUT=VALUE",
        help="Change a value; NODE is an id, a title or a class name. May be given several times.",
        show_default=False,
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Set every seed of the workflow.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def validate_command(
    source: SourceArgument,
    workflow: WorkflowOption = None,
    models: ModelsOption = None,
    extra_paths: ExtraPathsOption = None,
    input_dir: Annotated[Path | None, typer.Option("--input-dir", help="Where input pictures are.")] = None,
    assignments: SetOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check workflows against the node classes and your model files, without running anything."""
    folders = model_folders(models, extra_paths, input_dir or Path("input"))
    preparation = Preparation(implemented_schemas(), folders)
    changes = Changes(set=assignments or (), seed=seed)
    # Every workflow of the source, unless one is chosen: checking all costs nothing.
    reports = [
        (found, replace(report, notes=(*report.notes, *lora_notes(report.graph, folders))))
        for found, report in preparation.reports(source, workflow or "all", changes)
    ]
    if as_json:
        typer.echo(json.dumps({"workflows": [report_json(f, r) for f, r in reports]}, indent=1))
    else:
        for found, report in reports:
            print_report(found, report)
    code = max((exit_code(report) for _, report in reports), key=lambda c: {0: 0, 3: 1, 2: 2}[c])
    if code:
        raise typer.Exit(code)


def exit_code(report: Report) -> int:
    """0 if the graph can run, 3 if only model files are missing, 2 for everything else."""
    return 2 if report.errors else 3 if report.missing else 0


def print_report(found: Found, report: Report) -> None:
    """A report for a person, on standard error."""
    console = open_console(stderr=True)
    name = f"{found.origin}{f' “{found.title}”' if found.title else ''}"
    count = len(report.graph.nodes)
    if report.ok:
        console.print(f"[green]valid[/]  {escape(name)}: {count} nodes, {len(report.outputs)} output(s)")
    else:
        console.print(f"[red]not valid[/]  {escape(name)}: {count} nodes")
    for problem in report.errors:
        console.print(f"  • {escape(problem.line())}")
    for note in (*report.graph.notes, *report.notes):
        console.print(f"  [dim]note: {escape(note)}[/]")
    print_missing(console, report.missing)


def print_missing(console: Console, missing: tuple[MissingModel, ...]) -> None:
    """The model files that are missing: a table on a terminal, a line each elsewhere."""
    if missing and console.is_terminal:
        console.print(missing_table(missing))
        return
    for entry in missing:
        nearest = f"; nearest: {', '.join(entry.nearest)}" if entry.nearest else ""
        url = f"; source: {entry.url}" if entry.url else ""
        node = f"node {entry.node_id} {entry.node_title}"
        place = f"{entry.folder}/{entry.name}".replace("\\", "/")
        console.print(f"  • missing: {escape(f'{place} ({node}){nearest}{url}')}")


def missing_table(missing: tuple[MissingModel, ...]) -> Table:
    """The model files that are missing: node, folder, name, nearest existing names, download source."""
    table = Table(title="Missing model files")
    for heading in ("node", "folder", "missing file", "nearest", "source"):
        table.add_column(heading, overflow="fold")
    for entry in missing:
        node = f"{entry.node_id} {entry.node_title}"
        nearest = "\n".join(entry.nearest)
        table.add_row(*(escape(text) for text in (node, entry.folder, entry.name, nearest, entry.url or "")))
    return table


def report_json(found: Found, report: Report) -> dict[str, JSON]:
    """A report for a program."""
    errors: list[JSON] = [
        {
            "type": p.type,
            "node": p.node_id,
            "class": p.class_type,
            "message": p.message,
            "details": p.details,
            "hint": p.hint,
        }
        for p in report.errors
    ]
    missing: list[JSON] = [
        {
            "node": m.node_id,
            "title": m.node_title,
            "folder": m.folder,
            "name": m.name,
            "nearest": list(m.nearest),
            "url": m.url,
        }
        for m in report.missing
    ]
    return {
        "workflow": found.index,
        "title": found.title,
        "status": {0: "valid", 2: "invalid", 3: "models missing"}[exit_code(report)],
        "nodes": len(report.graph.nodes),
        "outputs": list(report.outputs),
        "errors": errors,
        "missing": missing,
        "notes": [*report.graph.notes, *report.notes],
    }


def convert_command(
    source: SourceArgument,
    workflow: WorkflowOption = None,
    assignments: SetOption = None,
    seed: SeedOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file instead.")] = None,
) -> None:
    """Print a workflow in ComfyUI's API format (with --workflow all: a JSON list of them)."""
    chosen = read_workflows(source, workflow, Changes(set=assignments or (), seed=seed), known_schemas())
    console = open_console(stderr=True)
    for _, graph in chosen:
        for note in graph.notes:
            console.print(f"[dim]note: {escape(note)}[/]")
    graphs: list[JSON] = [graph.to_api() for _, graph in chosen]
    wanted = graphs if workflow == "all" else graphs[0]
    if output is None:
        say_json(wanted, indent=2)
        return
    text = json.dumps(wanted, indent=2, ensure_ascii=False)
    write_file(output, f"{text}\n".encode())


def nodes_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A class, for all of it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the node classes and which of them run here, or show one with its inputs and outputs."""
    schemas = known_schemas()
    if name is None:
        _list_classes([schemas[key] for key in sorted(schemas)], as_json)
        return
    schema = _find_class(name)
    if as_json:
        from loraloom.workflow.object_info import object_info

        typer.echo(json.dumps({schema.name: object_info(schema, lambda _: ())}, indent=1))
        return
    _show_class(schema)


def _find_class(name: str) -> NodeSchema:
    schemas = known_schemas()
    if name in schemas:
        return schemas[name]
    titles = {schema.display_name or key: key for key, schema in schemas.items()}
    folded = {key.lower(): key for key in (*schemas, *titles)}
    match = folded.get(name.lower())
    if match is not None:
        return schemas[titles.get(match, match)]
    close = [folded[key] for key in get_close_matches(name.lower(), folded, n=4, cutoff=0.5)]
    hint = f" Nearest: {', '.join(close)}." if close else ""
    raise InputError(f"there is no node class {name!r}.{hint} `loraloom nodes` lists all")


def _list_classes(schemas: list[NodeSchema], as_json: bool) -> None:
    implemented = implemented_schemas()
    if as_json:
        rows = [
            {
                "name": s.name,
                "title": s.display_name or s.name,
                "category": s.category,
                "runs": s.name in implemented,
            }
            for s in schemas
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("class", "runs", "title", "category", box=None)
    for schema in schemas:
        title = schema.display_name if schema.display_name != schema.name else ""
        runs = "yes" if schema.name in implemented else ""
        table.add_row(*(escape(text) for text in (schema.name, runs, title, schema.category)))
    open_console().print(table)


def _show_class(schema: NodeSchema) -> None:
    console = open_console()
    flags = [flag for flag in ("output_node", "deprecated", "experimental") if getattr(schema, flag)]
    about = " · ".join((schema.category, *(flag.replace("_", " ") for flag in flags)))
    console.print(f"[bold]{escape(schema.name)}[/]  {escape(schema.display_name)}\n{escape(about)}")
    if schema.name not in implemented_schemas():
        console.print("[yellow]Known from ComfyUI; Loraloom cannot run it yet.[/]")
    if schema.newer:
        console.print("[dim]Newer than the table of ComfyUI's classes: names are right, ranges unknown.[/]")
    inputs = Table("input", "type", "default", "range or choices", box=None)
    for entry in schema.inputs:
        label = entry.name if entry.required else f"{entry.name} (optional)"
        default = "" if entry.default is None else json.dumps(entry.default, ensure_ascii=False)
        inputs.add_row(*(escape(text) for text in (label, entry.type, default, _allowed(entry))))
    console.print(inputs)
    outputs = ", ".join(o.name if o.name == o.type else f"{o.name} ({o.type})" for o in schema.outputs)
    console.print(f"outputs: {escape(outputs or 'none')}")


def _allowed(entry: Input) -> str:
    folders = [f"files in {folder}" for folder in entry.folders]
    parts = [*folders, *(str(choice) for choice in entry.choices)]
    low, high = entry.options.get("min"), entry.options.get("max")
    if low is not None or high is not None:
        parts.append(f"{'' if low is None else low} … {'' if high is None else high}")
    return ", ".join(parts)
