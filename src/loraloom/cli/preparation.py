"""What `run` and `grid` share: graphs that are checked before torch is loaded, and the session for them."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from loraloom.cli.lora_notes import lora_notes, with_renamed_loras
from loraloom.cli.settings import Compat, Dtype
from loraloom.cli.workflow_commands import chosen_graphs
from loraloom.custom_nodes.load import load_packs
from loraloom.engine.validation import ClassChecks
from loraloom.folders import model_folders
from loraloom.workflow.edit import apply_assignments
from loraloom.workflow.graph import Graph
from loraloom.workflow.implemented import implemented_schemas, known_schemas
from loraloom.workflow.insert_lora import insert_loras, read_lora_choice
from loraloom.workflow.validate import validate

if TYPE_CHECKING:
    from loraloom.session import Session


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The options of a command that say where things are and how to compute; see `session.Session`."""

    models: list[Path] | None
    extra_paths: list[Path] | None
    custom_nodes: list[Path] | None
    output_dir: Path
    input_dir: Path
    device: str
    dtype: Dtype
    compat: Compat
    strict_lora: bool
    metadata: bool = True


class Preparation:
    """Model folders and node packs, as the options name them. What is wrong with a pack is said at once."""

    def __init__(self, options: SessionOptions) -> None:
        self._options = options
        self.folders = model_folders(options.models, options.extra_paths, options.input_dir)
        self.packs = load_packs(
            options.custom_nodes or (), folders=self.folders, output_dir=options.output_dir
        )
        for failure in self.packs.failed:
            typer.echo(f"warning: {failure}", err=True)
        foreign = {name: kind.schema for name, kind in self.packs.nodes.items()}
        self._known = {**known_schemas(), **foreign}
        self._runnable = {**implemented_schemas(), **foreign}

    def graphs(
        self,
        source: str,
        workflow: str | None,
        assignments: list[str] | None,
        loras: list[str] | None,
        seed: int | None,
    ) -> list[Graph]:
        """The workflows to run, changed as asked, checked, with hints on their LoRAs among their notes."""
        choices = [read_lora_choice(text) for text in loras or ()]
        graphs: list[Graph] = []
        for _, graph in chosen_graphs(source, workflow, assignments, seed, self._known):
            found = with_renamed_loras(insert_loras(graph, self._known, choices), self.folders)
            ready = self._checked(found)
            hints = lora_notes(ready, self.folders)
            graphs.append(replace(ready, notes=(*ready.notes, *hints)))
        return graphs

    def changed(self, graph: Graph, assignments: Sequence[str]) -> Graph:
        """A checked graph with other values, checked again."""
        return self._checked(apply_assignments(graph, self._known, list(assignments)))

    def _checked(self, graph: Graph) -> Graph:
        report = validate(graph, self._runnable, self.folders.list, own=ClassChecks(self.packs.nodes))
        report.raise_if_bad()
        return replace(report.graph, notes=(*report.graph.notes, *report.notes))

    @contextmanager
    def session(self) -> Generator[Session]:
        """A session with these folders and packs; what the packs print goes to standard error."""
        from loraloom.session import Session

        options = self._options
        with (
            Session(
                options.models,
                extra_model_paths=options.extra_paths or (),
                output_dir=options.output_dir,
                input_dir=options.input_dir,
                device=options.device,
                dtype=options.dtype,
                compat=options.compat,
                strict_lora=options.strict_lora,
                metadata=options.metadata,
                custom_nodes=self.packs,
            ) as session,
            redirect_stdout(sys.stderr) if self.packs.nodes else nullcontext(),
        ):
            yield session
