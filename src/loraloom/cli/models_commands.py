"""`loraloom models`: which model files there are, and where they belong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from loraloom.cli.console import open_console, say, say_json
from loraloom.cli.settings import ModelsOption
from loraloom.errors import InputError, LoraloomError
from loraloom.folders import model_folders

models_app = typer.Typer(
    help="List model files and the folders they belong in, and convert them.", no_args_is_help=True
)


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
        say(directory)


@models_app.command("convert")
def convert_models(
    files: Annotated[list[Path], typer.Argument(help="Pickled files: .ckpt, .pt, .pth, .bin.")],
    force: Annotated[bool, typer.Option(help="Replace a .safetensors file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Write pickled model files as .safetensors beside them.

    A pickle can run programs when it is opened. It is read by a process of its own, without network or rights
    to write or start anything; a file that asks for more than tensors is refused, with what it asked for."""
    from loraloom.weights.pickle_file import convert_pickle

    console = open_console(stderr=True)
    rows: list[dict[str, object]] = []
    failed: LoraloomError | None = None
    for path in files:
        try:
            done = convert_pickle(path, force=force)
        except LoraloomError as error:
            if len(files) == 1 and not as_json:
                raise
            failed = error
            rows.append({"file": str(path), "error": str(error)})
            if not as_json:
                console.print(f"[red]error:[/] {escape(str(error))}")
            continue
        rows.append({"file": str(path), **asdict(done), "path": str(done.path)})
        if not as_json:
            left = f"; {done.left_out_count} that are no tensors left out" if done.left_out_count else ""
            names = f" ({escape(', '.join(done.left_out[:5]))})" if done.left_out else ""
            said = f"{done.tensors} tensors, {_size(done.path)}"
            console.print(f"{escape(str(done.path))}: {said}{left}{names}")
    if as_json:
        say_json(rows)
    if failed is not None:
        raise typer.Exit(failed.exit_code)


@models_app.command("quantize")
def quantize_model(
    file: Annotated[Path, typer.Argument(help="The model file.")],
    to: Annotated[
        str,
        typer.Option(
            help="int8, int8:convrot, fp8, fp8:e5m2, mxfp8, nvfp4, convrot_w4a4, gguf:TYPE (Q8_0, Q5_1, …); "
            "bf16, fp16 or fp32 for the way back."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The new file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model file in another storage format, as ComfyUI reads it, and say what each weight lost."""
    from loraloom.models.recognition import is_lora
    from loraloom.weights.header import read_header
    from loraloom.weights.quantise import quantise_file

    if is_lora(read_header(file)):
        raise InputError(f"{file}: a LoRA; LoRAs are not quantised, give the model that it is for")
    architecture = _gguf_architecture(file) if to.startswith("gguf") else ""
    console = open_console(stderr=True)
    columns = (TextColumn("quantising"), MofNCompleteColumn(), TextColumn("{task.fields[name]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(read_header(file).tensors), name="")
        written = quantise_file(
            file,
            to,
            out,
            architecture=architecture,
            said=lambda name: progress.update(task, advance=1, name=escape(name)),
        )
    if as_json:
        typer.echo(json.dumps({**asdict(written), "path": str(written.path)}, indent=1))
        return
    table = Table("weight", "format", "shape", "error", box=None)
    for layer in written.layers:
        shape = "×".join(map(str, layer.shape))
        table.add_row(escape(layer.name), layer.format, shape, f"{layer.relative:.3%}")
    console = open_console()
    console.print(table)
    worst = max((layer.relative for layer in written.layers), default=0.0)
    console.print(
        f"{escape(str(written.path))}: {len(written.layers)} weights as {escape(to)}, {written.kept} tensors"
        f" as they were; {_bytes(written.bytes_before)} → {_bytes(written.bytes_after)}; largest error"
        f" {worst:.3%}"
    )


def _gguf_architecture(file: Path) -> str:
    """What ComfyUI-GGUF calls the family of a diffusion model."""
    from loraloom.models.recognition import recognise
    from loraloom.weights.header import read_header

    family = recognise(read_header(file)).family
    return family.gguf or family.name


def _size(path: Path) -> str:
    return _bytes(path.stat().st_size)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
