"""The Python interface: `run` for one workflow, `Session` to keep models warm between several.

    import loraloom
    result = loraloom.run("page.html", workflow=1, models="ComfyUI/models", set={"KSampler.seed": 7})
    result.images[0].show()

The command line and the server's worker do the same, with a display around it.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from loraloom.custom_nodes.load import Packs, load_packs
from loraloom.engine.cache import Cache
from loraloom.engine.events import Event, NodeFailed, RunCancelled, RunFailed, RunFinished
from loraloom.engine.node import NodeType, collect
from loraloom.engine.run import run as run_graph
from loraloom.engine.together import Inside, Start, Told, run_together
from loraloom.engine.validation import ClassChecks
from loraloom.errors import Cancelled, InputError, LoraloomError
from loraloom.folders import ModelFolders, model_folders
from loraloom.lora.load import Compat
from loraloom.models.computing import USUAL, Computing
from loraloom.models.residency.memory import DtypeName, Memory
from loraloom.models.residency.resident import Arithmetic
from loraloom.models.residency.together import Together
from loraloom.preparation.prepare import Changes, Preparation, Source
from loraloom.result import Recorder, Run
from loraloom.runtime.lora_shelf import LoraShelf
from loraloom.runtime.output_files import OutputFolder
from loraloom.runtime.services import Services, Settings
from loraloom.workflow.graph import JSON, Graph
from loraloom.workflow.implemented import implemented_schemas
from loraloom.workflow.schema import NodeSchema

FilePath: TypeAlias = "str | os.PathLike[str]"


class NodeFailure(LoraloomError):
    """A node failed; the message names it, and the cause is chained."""

    def __init__(self, failed: NodeFailed) -> None:
        self.failed = failed
        super().__init__(failed.message)
        cause = failed.exception
        self.exit_code = cause.exit_code if isinstance(cause, LoraloomError) else 1


def error_of(event: Event) -> BaseException | None:
    """What a run failed with: NodeFailure, Cancelled, or what else went wrong; None for other events."""
    if isinstance(event, RunCancelled):
        return Cancelled("the run was cancelled")
    if not isinstance(event, RunFailed):
        return None
    if event.failure is None:
        return event.error
    failure = NodeFailure(event.failure)
    failure.__cause__ = event.error
    return failure


def _never() -> bool:
    return False


class Session:
    """Models, LoRAs and results kept between runs. Not for several threads at once.

    models: folders laid out like ComfyUI's `models/` (default: see `folders.default_roots`), or what was
        found in such folders.
    device: "auto", "cpu", "cuda", "cuda:1", "xpu", "mps".
    dtype: "auto" (bfloat16 where the device multiplies it natively, else float32), "fp32", "bf16", "fp16".
    vram: bytes of the device's memory that may be used; None: what is free.
    storage: "native" multiplies quantised weights as ComfyUI does for their format (for integers it rounds
        the inputs too), "widened" with their values in `dtype`.
    computing: which attention, how narrow weights stay, what is compiled or left out; see
        `models.computing.Computing`.
    compat: "trainer" applies LoRAs as their trainer meant; "comfyui" as ComfyUI does where that differs.
    strict_lora: a LoRA key without a place is an error.
    metadata: pictures carry their workflow and receipts.
    nodes: further node classes by name (made with `loraloom.engine.node.node`).
    custom_nodes: folders of node packs written to ComfyUI's contract, or packs that are loaded already; they
        are code that runs with all your rights. Loraloom's own classes come before theirs; `packs.failed`
        names what was skipped.
    temp_dir: where temporary pictures go, and stay; None: a folder that `close` takes away.
    """

    def __init__(
        self,
        models: FilePath | Sequence[FilePath] | ModelFolders | None = None,
        *,
        output_dir: FilePath = "output",
        input_dir: FilePath = "input",
        extra_model_paths: Sequence[FilePath] = (),
        device: str = "auto",
        dtype: DtypeName = "auto",
        vram: int | None = None,
        storage: Arithmetic = "native",
        computing: Computing = USUAL,
        compat: Compat = "trainer",
        strict_lora: bool = False,
        metadata: bool = True,
        nodes: Mapping[str, NodeType] | None = None,
        custom_nodes: Sequence[FilePath] | Packs = (),
        cache: Cache | None = None,
        temp_dir: FilePath | None = None,
    ) -> None:
        if not isinstance(models, ModelFolders):
            roots = [models] if isinstance(models, str | os.PathLike) else models
            models = model_folders(
                None if roots is None else [Path(r) for r in roots],
                [Path(p) for p in extra_model_paths],
                Path(input_dir),
            )
        self.folders = models
        self.packs = (
            custom_nodes
            if isinstance(custom_nodes, Packs)
            else load_packs(
                [Path(p) for p in custom_nodes], folders=self.folders, output_dir=Path(output_dir)
            )
        )
        own = {**collect("loraloom.nodes"), **(nodes or {})}
        self.nodes: Mapping[str, NodeType] = {**self.packs.nodes, **own}
        runnable = {
            **self.packs.schemas,
            **implemented_schemas(),
            **{name: found.schema for name, found in (nodes or {}).items()},
        }
        self._preparation = Preparation(runnable, self.folders, ClassChecks(self.nodes))
        self.memory = Memory(device, dtype, vram, storage, computing)
        self._own_temp = tempfile.TemporaryDirectory(prefix="loraloom-") if temp_dir is None else None
        self.services = Services(
            folders=self.folders,
            memory=self.memory,
            loras=LoraShelf(compat, strict_lora),
            output=OutputFolder(Path(output_dir), "output"),
            temp=OutputFolder(Path(self._own_temp.name if self._own_temp else str(temp_dir)), "temp"),
            input_dir=Path(input_dir),
            training=Path(output_dir) / ".training",
            settings=Settings(metadata=metadata),
        )
        self._cache = cache or Cache()

    @property
    def schemas(self) -> Mapping[str, NodeSchema]:
        """The node classes that this session runs."""
        return {name: found.schema for name, found in self.nodes.items()}

    def prepare(
        self,
        source: Source | Graph,
        *,
        workflow: int | str | None = None,
        set: Mapping[str, JSON] | Iterable[str] = (),
        seed: int | None = None,
        loras: Sequence[str] = (),
    ) -> Graph:
        """The graph that `run` would run: read, changed and checked, by the code of the command line.

        source: a path, "-", workflow or page text, bytes, parsed JSON, or a Graph.
        workflow: which one, from 1, where the source holds several.
        loras, set, seed: what to change, in this order; see `preparation.prepare.Changes`.
        Raises InputError, WorkflowError, MissingModelsError.
        """
        changes = Changes(loras, set if isinstance(set, Mapping) else list(set), seed)
        graphs = self._preparation.prepare(source, workflow, changes)
        if len(graphs) != 1:
            raise InputError(f"there are {len(graphs)} workflows; choose one of them, from 1")
        return graphs[0]

    def run(
        self,
        source: Source | Graph,
        *,
        workflow: int | str | None = None,
        set: Mapping[str, JSON] | Iterable[str] = (),
        seed: int | None = None,
        loras: Sequence[str] = (),
        on_event: Callable[[Event], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Run:
        """Run a workflow and return its pictures and receipts. Arguments: see `prepare`.

        on_event: sees every event of `loraloom.engine.events` as it happens.
        Raises what `prepare` raises, NodeFailure when a node fails, Cancelled when `cancel` was set."""
        graph = self.prepare(source, workflow=workflow, set=set, seed=seed, loras=loras)
        return self.run_prepared(graph, on_event=on_event, cancel=cancel)

    def run_prepared(
        self,
        graph: Graph,
        *,
        on_event: Callable[[Event], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Run:
        """Run a graph that `prepare` returned, without checking it again. Arguments: see `run`."""
        recorder = self._recorder(graph)
        for event in self.events(graph, cancel=cancel):
            recorder.see(event)
            if on_event is not None:
                on_event(event)
            if (error := error_of(event)) is not None:
                try:
                    raise error
                finally:
                    del error  # it and this frame would keep each other, and what was computed last
        return recorder.run()

    def run_together(
        self,
        graphs: Sequence[Graph],
        *,
        rows: int | None = None,
        on_event: Callable[[int, Event], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Run | BaseException]:
        """Run graphs that `prepare` returned as rows of common batches, wherever they evaluate the same base
        model; what differs in LoRA, strength, seed or prompt goes into one batch.

        rows: of a batch at most; None: what memory takes.
        on_event: sees the events with the graph's place.
        → what each run gave, or what it failed with (`error_of`), which the others do not notice."""
        recorders = [self._recorder(graph) for graph in graphs]
        found: list[Run | BaseException] = [Cancelled("the run was cancelled")] * len(graphs)

        def starting(graph: Graph) -> Start:
            return lambda inside: self.events(graph, cancel=cancel, inside=inside)

        stopped = [cancel.is_set if cancel is not None else _never] * len(graphs)
        for number, event in self.together([starting(graph) for graph in graphs], stopped, rows):
            recorders[number].see(event)
            if on_event is not None:
                on_event(number, event)
            if isinstance(event, RunFinished):
                found[number] = recorders[number].run()
            elif (error := error_of(event)) is not None:
                found[number] = error
        return found

    def together(
        self, starts: Sequence[Start], cancelled: Sequence[Callable[[], bool]], rows: int | None = None
    ) -> Generator[Told]:
        """The events of several runs that evaluate networks together; see `engine.together`."""
        joined = Together(self.memory, len(starts), rows)
        self.memory.joined = joined
        try:
            yield from run_together(joined.turns, starts, cancelled, torch.inference_mode)
        finally:
            self.memory.joined = None

    def events(
        self, graph: Graph, *, cancel: threading.Event | None = None, inside: Inside = torch.inference_mode
    ) -> Iterator[Event]:
        """Run a prepared graph, event by event. inside: what its nodes run in."""
        extra: dict[str, JSON] = {} if graph.ui is None else {"workflow": graph.ui}
        return run_graph(
            graph,
            self.nodes,
            cache=self._cache,
            services=self.services,
            extra_pnginfo=extra,
            cancel=cancel,
            find_file=self.folders.find,
            inside=inside,
        )

    def _recorder(self, graph: Graph) -> Recorder:
        recorder = Recorder({"output": self.services.output.root, "temp": self.services.temp.root})
        for note in (*graph.notes, *map(str, self.packs.failed)):
            recorder.warn(note)
        return recorder

    def forget(self) -> None:
        """Let go of results; models stay."""
        self._cache.clear()

    def close(self) -> None:
        """Let go of models, results and temporary pictures."""
        self._cache.clear()
        self.services.encodings.clear()
        self.services.loras.close()
        self.packs.close()
        self.memory.release()
        if self._own_temp is not None:
            self._own_temp.cleanup()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(
    source: Source | Graph,
    *,
    models: FilePath | Sequence[FilePath] | None = None,
    workflow: int | str | None = None,
    set: Mapping[str, JSON] | Iterable[str] = (),
    seed: int | None = None,
    loras: Sequence[str] = (),
    output_dir: FilePath = "output",
    input_dir: FilePath = "input",
    extra_model_paths: Sequence[FilePath] = (),
    custom_nodes: Sequence[FilePath] = (),
    device: str = "auto",
    dtype: DtypeName = "auto",
    vram: int | None = None,
    storage: Arithmetic = "native",
    computing: Computing = USUAL,
    compat: Compat = "trainer",
    strict_lora: bool = False,
    metadata: bool = True,
) -> Run:
    """Run one workflow; see `Session` and `Session.run` for the arguments."""
    with Session(
        models,
        output_dir=output_dir,
        input_dir=input_dir,
        extra_model_paths=extra_model_paths,
        custom_nodes=custom_nodes,
        device=device,
        dtype=dtype,
        vram=vram,
        storage=storage,
        computing=computing,
        compat=compat,
        strict_lora=strict_lora,
        metadata=metadata,
    ) as session:
        return session.run(source, workflow=workflow, set=set, seed=seed, loras=loras)
