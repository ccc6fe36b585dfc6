"""What `run` and `grid` share: what the options name, found before torch is loaded, and the session on it."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom import heap
from loraloom.cli.console import say
from loraloom.cli.settings import Compat, Dtype, Storage
from loraloom.custom_nodes.load import load_packs
from loraloom.engine.validation import ClassChecks
from loraloom.folders import model_folders
from loraloom.models.computing import USUAL, Computing
from loraloom.preparation.prepare import Preparation
from loraloom.reading_ahead import read_ahead
from loraloom.uncollected import uncollected
from loraloom.workflow.graph import Graph
from loraloom.workflow.implemented import implemented_schemas
from loraloom.workflow.needed_files import needed_files

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
    storage: Storage
    compat: Compat
    strict_lora: bool
    metadata: bool = True
    vram: int | None = None
    computing: Computing = USUAL


class Environment:
    """Model folders and node packs, as the options name them. What is wrong with a pack is said at once."""

    def __init__(self, options: SessionOptions) -> None:
        heap.reuse()  # before there are threads
        self._options = options
        self._folders = model_folders(options.models, options.extra_paths, options.input_dir)
        self._packs = load_packs(
            options.custom_nodes or (), folders=self._folders, output_dir=options.output_dir
        )
        for failure in self._packs.failed:
            say(f"warning: {failure}", stderr=True)
        runnable = {**self._packs.schemas, **implemented_schemas()}
        self.preparation = Preparation(runnable, self._folders, ClassChecks(self._packs.nodes))

    def _read_ahead(self, graphs: Iterable[Graph]) -> None:
        """Let the system read the model files that graphs name, while torch is imported."""
        schemas = self.preparation.runnable
        named = [file for graph in graphs for file in needed_files(graph.to_api(), schemas)]
        found = [
            self._folders.find(kind, file.name)
            for file in named
            if file.is_model or file.is_added
            for kind in file.kinds
        ]
        read_ahead(path for path in found if path is not None)

    @contextmanager
    def session(self, graphs: Iterable[Graph]) -> Generator[Session]:
        """A session with these folders and packs, to run these graphs; what the packs print goes to standard
        error."""
        self._read_ahead(graphs)
        with uncollected():
            from loraloom.session import Session

        options = self._options
        with (
            Session(
                self._folders,
                output_dir=options.output_dir,
                input_dir=options.input_dir,
                device=options.device,
                dtype=options.dtype,
                vram=options.vram,
                storage=options.storage,
                computing=options.computing,
                compat=options.compat,
                strict_lora=options.strict_lora,
                metadata=options.metadata,
                custom_nodes=self._packs,
            ) as session,
            redirect_stdout(sys.stderr) if self._packs.nodes else nullcontext(),
        ):
            yield session
