"""`loraloom lora`: look at LoRA files, and make new ones of them. `inspect` never imports torch."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from loraloom.cli.base_header import base_components
from loraloom.errors import InputError, LoraloomError
from loraloom.lora.file import read_lora
from loraloom.lora.identity import HashIndex
from loraloom.lora.inspect import Page, fit_line, page_of

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
    compat: Annotated[str, typer.Option(help="trainer or comfyui: whose rules to apply.")] = "trainer",
    hashes: Annotated[bool, typer.Option(help="Compute the hashes (reads the whole file).")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Show what a LoRA is, what it is for, how it was made, and whether it fits a checkpoint."""
    components = base_components(base) if base else None
    index = HashIndex() if hashes else None
    pages: list[dict[str, object]] = []
    failed: LoraloomError | None = None
    for path in files:
        try:
            file = read_lora(path)
            page = page_of(file, components, index.hashes(file.path) if index else None, compat)
        except LoraloomError as error:
            if len(files) == 1:
                raise
            failed = error
            pages.append({"file": str(path), "error": str(error)})
            if not as_json:
                Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}")
            continue
        pages.append(page.to_json())
        if not as_json:
            _print(page)
    if index:
        index.save()
    if as_json:
        typer.echo(json.dumps(pages, indent=1, ensure_ascii=False))
    if failed is not None:
        raise typer.Exit(failed.exit_code)


def _print(page: Page) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: str) -> None:
        if value:
            table.add_row(name, escape(value))

    row("for", page.title)
    row("algebra", _counts(page.algorithms))
    row("changes", _counts(page.parts))
    row("rank", ", ".join(f"{rank} (×{count})" for rank, count in page.ranks.items()))
    row("scale", _counts(page.alpha))
    row("names", page.dialect)
    row("written by", page.trainer)
    row("stored as", f"{_counts(page.dtypes)} · {page.size / 1e6:.1f} MB")
    row("trigger words", ", ".join(page.triggers) + (f"  ({page.trigger_source})" if page.triggers else ""))
    if len(page.tags) > len(page.triggers):
        row("training tags", ", ".join(f"{tag} {count}" for tag, count in page.tags))
    for name, value in page.facts.items():
        row(name, value)
    row("description", page.description)
    row("pictures", ", ".join(page.previews))
    for name, value in page.hashes.items():
        row(name, value)
    lines: list[Table | str] = [table]
    if page.fit is not None:
        good = not page.fit["unplaced"] and not page.fit["rejected"]
        lines.append(f"\n[{'green' if good else 'yellow'}]{escape(fit_line(page.fit))}[/]")
    if strange := len(page.unknown) - sum(page.unsupported.values()):
        lines.append(f"[yellow]{strange} tensors of no known kind[/]: {escape(page.unknown[0])} …")
    lines += [f"[yellow]{escape(note)}[/]" for note in page.notes]
    Console().print(Panel(Group(*lines), title=escape(Path(page.file).name), title_align="left"))


def _counts(counts: object) -> str:
    items = counts.items() if isinstance(counts, dict) else ()
    return ", ".join(f"{name} ×{count}" for name, count in items)


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
    report = convert(read_lora(file), base_components(base), out, to)
    Console(stderr=True).print(f"{out}: {report}")


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
    Console(stderr=True).print(f"{out}: {report}")


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

    tuned_weights, original_weights = checkpoint_weights(tuned), checkpoint_weights(original)
    report = extract(
        tuned_weights, original_weights, out, rank=rank, energy=energy, precision=precision.value
    )
    Console(stderr=True).print(f"{out}: {report}")


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
    Console(stderr=True).print(f"{out}: {report}")
