"""`loraloom lora`: look at LoRA files, and make new ones of them. `inspect` never imports torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from loraloom.cli.base_header import base_components
from loraloom.cli.console import open_console, say_json
from loraloom.cli.lora_page import print_page
from loraloom.cli.settings import CompatOption
from loraloom.errors import InputError, LoraloomError
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import HashIndex
from loraloom.lora.inspect import page_of
from loraloom.lora.not_finite import not_finite, say_not_finite

lora_app = typer.Typer(help="Inspect, convert, merge, extract and resize LoRA files.", no_args_is_help=True)

FilesArgument = Annotated[list[Path], typer.Argument(help="LoRA files, or PEFT directories.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]
BaseOption = Annotated[
    Path | None, typer.Option("--base", help="A checkpoint: where would the LoRA's modules go in it?")
]


class Precision(StrEnum):
    """How a written LoRA stores its tensors."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


PrecisionOption = Annotated[Precision, typer.Option("--precision", help="What to store tensors in.")]


@lora_app.command("inspect")
def inspect_command(
    files: FilesArgument,
    base: BaseOption = None,
    compat: CompatOption = "trainer",
    hashes: Annotated[
        bool, typer.Option(help="Compute the hashes and look for NaN (reads the whole file).")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Show what a LoRA is, what it is for, how it was made, and whether it fits a checkpoint."""
    components = base_components(base) if base else None
    index = HashIndex() if hashes else None
    pages: list[dict[str, object]] = []
    failed: LoraloomError | None = None
    console = open_console()
    for path in files:
        try:
            file = read_lora(path)
            known = index.hashes(file.path) if index else None
            page = page_of(file, components, known, compat, not_finite(file.header) if index else None)
        except LoraloomError as error:
            if len(files) == 1:
                raise
            failed = error
            pages.append({"file": str(path), "error": str(error)})
            if not as_json:
                open_console(stderr=True).print(f"[red]error:[/] {escape(str(error))}")
            continue
        pages.append(page.to_json())
        if not as_json:
            print_page(page, console)
    if index:
        index.save()
    if as_json:
        say_json(pages)
    if failed is not None:
        raise typer.Exit(failed.exit_code)


@lora_app.command("convert")
def convert_command(
    file: Annotated[Path, typer.Argument(help="The LoRA to convert.")],
    out: OutOption,
    to: Annotated[str, typer.Option(help="kohya, native or diffusers: how to spell names.")] = "kohya",
    base: BaseOption = None,
) -> None:
    """Write the LoRA in another dialect; tensors stay bit for bit as they are."""
    from loraloom.lora.convert import convert

    if base is None:
        raise InputError("--base CHECKPOINT is needed: its names and shapes decide how modules are called")
    found, console = read_lora(file), open_console(stderr=True)
    report = convert(found, base_components(base), out, to)
    console.print(escape(f"{out}: {report}"))
    if broken := not_finite(found.header):
        said = f"{file}: {say_not_finite(broken)}; they are so in the new file too"
        console.print(f"[yellow]warning[/] {escape(said)}")


@lora_app.command("merge")
def merge_command(
    files: Annotated[list[str], typer.Argument(help="FILE or FILE:STRENGTH, two or more.")],
    out: OutOption,
    rank: Annotated[int | None, typer.Option(help="Reduce to this rank by SVD; without it, exact.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Reduce keeping this share of ‖ΔW‖², such as 0.99.")
    ] = None,
    base: BaseOption = None,
    precision: PrecisionOption = Precision.FP32,
) -> None:
    """Make one LoRA of several: exactly, by putting their factors side by side, or reduced by SVD."""
    from loraloom.lora.merge import merge, read_part

    if base is None:
        raise InputError("--base CHECKPOINT is needed: its names tell which modules are the same")
    parts = [read_part(text) for text in files]
    report = merge(parts, base_components(base), out, rank=rank, energy=energy, precision=precision.value)
    open_console(stderr=True).print(escape(f"{out}: {report}"))


@lora_app.command("extract")
def extract_command(
    tuned: Annotated[Path, typer.Argument(help="The fine-tuned checkpoint.")],
    original: Annotated[Path, typer.Argument(help="The checkpoint that it was tuned from.")],
    out: OutOption,
    rank: Annotated[int, typer.Option(help="The largest rank to use.")] = 64,
    energy: Annotated[
        float | None, typer.Option(help="Per layer, only as many ranks as keep this share.")
    ] = None,
    precision: PrecisionOption = Precision.FP16,
) -> None:
    """Make a LoRA of the difference between two checkpoints."""
    from loraloom.cli.checkpoint_weights import checkpoint_weights
    from loraloom.lora.extract import extract
    from loraloom.lora.writing import refuse_inputs

    refuse_inputs(out, [tuned, original])
    tuned_weights, original_weights = checkpoint_weights(tuned), checkpoint_weights(original)
    report = extract(
        tuned_weights, original_weights, out, rank=rank, energy=energy, precision=precision.value
    )
    open_console(stderr=True).print(escape(f"{out}: {report}"))


@lora_app.command("resize")
def resize_command(
    file: Annotated[Path, typer.Argument(help="The LoRA to resize.")],
    out: OutOption,
    rank: Annotated[int | None, typer.Option(help="The new rank.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Per layer, as many ranks as keep this share of ‖ΔW‖².")
    ] = None,
    precision: PrecisionOption = Precision.FP16,
) -> None:
    """Change a LoRA's rank by SVD, to a rank or to a share of its energy."""
    from loraloom.lora.resize import resize

    report = resize(read_lora(file), out, rank=rank, energy=energy, precision=precision.value)
    open_console(stderr=True).print(escape(f"{out}: {report}"))
