"""A LoRA's page for a person to read; `lora.inspect.Page` says what stands on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loraloom.lora.inspect import Page, fit_lines
from loraloom.lora.not_finite import say_not_finite

PARTS: Mapping[str, str] = {"model": "the model", "clip": "the text encoders"}


def print_page(page: Page, console: Console) -> None:
    """Print what a LoRA is, how it was made, what its content is called, and whether it fits a base."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for section in (_what(page), _making(page), page.hashes.items()):
        rows = [(name, value) for name, value in section if value]
        if rows and table.row_count:
            table.add_row("", "")
        for name, value in rows:
            table.add_row(name, escape(value))
    lines: list[Table | Padding | str] = [table, *_verdict(page)]
    console.print(Panel(Group(*lines), title=Text(Path(page.file).name), title_align="left"))


def _what(page: Page) -> Iterator[tuple[str, str]]:
    yield "for", page.title
    parts = [f"{page.parts[name]} of {said}" for name, said in PARTS.items() if name in page.parts]
    yield "modules", ", ".join(parts)
    yield "algebra", _counts(page.algorithms)
    yield "rank", _counts(page.ranks)
    yield "scale", _counts(page.alpha)
    yield "trigger words", ", ".join(page.triggers) + (f"  ({page.trigger_source})" if page.triggers else "")
    if len(page.tags) > len(page.triggers):
        yield "training tags", ", ".join(f"{tag} ({count})" for tag, count in page.tags)
    yield "description", page.description
    yield "previews", ", ".join(page.previews)
    yield "names", page.dialect
    yield "written by", "" if page.trainer == "unknown" else page.trainer
    yield "stored as", f"{_counts(page.dtypes)}, {_size(page.size)}"


def _making(page: Page) -> Iterator[tuple[str, str]]:
    """The header's facts, but for those that repeat what the tensors show."""
    rank = next(iter(page.ranks)) if len(page.ranks) == 1 else None
    for name, value in page.facts.items():
        if not (name == "stated rank" and value == rank) and not (name == "title" and _is_name(page, value)):
            yield name, value


def _verdict(page: Page) -> Iterator[str | Padding]:
    """Whether it fits the base, and what else to know."""
    if page.fit is not None:
        first, *others = fit_lines(page.fit, page.title)
        good = not page.fit["unplaced"] and not page.fit["rejected"]
        yield f"\n[{'green' if good else 'yellow'}]{escape(first)}[/]"
        yield from (Padding(escape(other), (0, 0, 0, 2)) for other in others)
    elif page.notes or page.unknown or page.not_finite:
        yield ""
    if strange := len(page.unknown) - sum(page.unsupported.values()):
        yield f"[yellow]{strange} tensors of no known kind[/]: {escape(page.unknown[0])} …"
    if page.not_finite:
        yield f"[red]{escape(say_not_finite(page.not_finite))}[/]"
    yield from (f"[yellow]{escape(note)}[/]" for note in page.notes)


def _is_name(page: Page, title: str) -> bool:
    return title == Path(page.file).stem


def _counts(counts: Mapping[str, int]) -> str:
    """ "a ×3, b ×1", and just "a" where there is nothing else."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ×{count}" for name, count in counts.items())


def _size(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
