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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from loraloom.custom_nodes.load import Packs, load_packs
from loraloom.engine.cache import Cache
from loraloom.engine.events import Event, NodeFailed, RunCancelled, RunFailed
from loraloom.engine.node import NodeType, collect
from loraloom.engine.run import run as run_graph
from loraloom.engine.validation import ClassChecks
from loraloom.errors import Cancelled, LoraloomError
from loraloom.folders import ModelFolders, model_folders
from loraloom.lora.load import Compat
from loraloom.models.memory import DtypeName, Memory
from loraloom.result import Recorder, Run
from loraloom.runtime.lora_shelf import LoraShelf
from loraloom.runtime.output_files import OutputFolder
from loraloom.runtime.services import Services, Settings
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.edit import apply_assignments, set_seed
from loraloom.workflow.graph import JSON, Graph
from loraloom.workflow.insert_lora import insert_loras, read_lora_choice
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.sources import read_source, select
from loraloom.workflow.validate import OwnChecks, validate

FilePath: TypeAlias = "str | os.PathLike[str]"


class NodeFailure(LoraloomError):
    """A node failed; the message names it, and the cause is chained."""

    def __init__(self, failed: NodeFailed) -> None:
        self.failed = failed
        super().__init__(failed.message)
        cause = failed.exception
        self.exit_code = cause.exit_code if isinstance(cause, LoraloomError) else 1


class Session:
    """Models, LoRAs and results kept between runs. Not for several threads at once.

    models: folders laid out like ComfyUI's `models/` (default: see `folders.default_roots`).
    device: "auto", "cpu", "cuda", "cuda:1", "mps". dtype: "auto" (bfloat16 where the device multiplies it
        natively, else float32), "fp32", "bf16", "fp16".
    compat: "trainer" applies LoRAs as their trainer meant; "comfyui" as ComfyUI does where that differs.
    strict_lora: a LoRA key without a place is an error.
    metadata: pictures carry their workflow and receipts.
    nodes: further node classes by name (made with `loraloom.engine.node.node`).
    custom_nodes: folders of node packs written to ComfyUI's contract, or packs that are loaded already; they
        are code that runs with all your rights. Loraloom's own classes come before theirs; `packs.failed`
        names what was skipped.
    """

    def __init__(
        self,
        models: FilePath | Sequence[FilePath] | None = None,
        *,
        output_dir: FilePath = "output",
        input_dir: FilePath = "input",
        extra_model_paths: Sequence[FilePath] = (),
        device: str = "auto",
        dtype: DtypeName = "auto",
        compat: Compat = "trainer",
        strict_lora: bool = False,
        metadata: bool = True,
        nodes: Mapping[str, NodeType] | None = None,
        custom_nodes: Sequence[FilePath] | Packs = (),
        cache: Cache | None = None,
    ) -> None:
        roots = None if models is None else [models] if isinstance(models, str | os.PathLike) else models
        self.folders = model_folders(
            None if roots is None else [Path(r) for r in roots],
            [Path(p) for p in extra_model_paths],
            Path(input_dir),
        )
        self.packs = (
            custom_nodes
            if isinstance(custom_nodes, Packs)
            else load_packs(
                [Path(p) for p in custom_nodes], folders=self.folders, output_dir=Path(output_dir)
            )
        )
        own = {**collect("loraloom.nodes"), **(nodes or {})}
        self.nodes: Mapping[str, NodeType] = {**self.packs.nodes, **own}
        self.memory = Memory(device, dtype)
        self._temp = tempfile.TemporaryDirectory(prefix="loraloom-")
        self.services = Services(
            folders=self.folders,
            memory=self.memory,
            loras=LoraShelf(compat, strict_lora),
            output=OutputFolder(Path(output_dir), "output"),
            temp=OutputFolder(Path(self._temp.name), "temp"),
            input_dir=Path(input_dir),
            settings=Settings(metadata=metadata),
        )
        self._cache = cache or Cache()

    @property
    def schemas(self) -> Mapping[str, NodeSchema]:
        """The node classes that this session runs."""
        return {name: found.schema for name, found in self.nodes.items()}

    def prepare(
        self,
        source: FilePath | bytes | Mapping[str, JSON] | Graph,
        *,
        workflow: int | str | None = None,
        set: Mapping[str, JSON] | Iterable[str] = (),
        seed: int | None = None,
        loras: Sequence[str] = (),
    ) -> Graph:
        """The graph that `run` would run: read, changed and validated.

        source: a path, "-", workflow or page text, bytes, parsed JSON, or a Graph.
        workflow: which one, from 1, where the source holds several.
        set: {"NODE.input": value} or "NODE.input=value" texts; NODE is an id, a title or a class name.
        loras: "FILE[:MODEL[:CLIP]]", put right behind the model's loader.
        Raises InputError, WorkflowError, MissingModelsError.
        """
        graph = (
            source
            if isinstance(source, Graph)
            else _read(source, workflow, {**core_schemas(), **self.schemas})
        )
        checks = ClassChecks(self.nodes)
        return edit_graph(graph, self.schemas, self.folders, checks, set=set, seed=seed, loras=loras)

    def run(
        self,
        source: FilePath | bytes | Mapping[str, JSON] | Graph,
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
        recorder = Recorder({"output": self.services.output.root, "temp": self.services.temp.root})
        for note in (*graph.notes, *map(str, self.packs.failed)):
            recorder.warn(note)
        for event in self.events(graph, cancel=cancel):
            recorder.see(event)
            if on_event is not None:
                on_event(event)
            if isinstance(event, RunFailed):
                if event.failure is None:
                    raise event.error
                raise NodeFailure(event.failure) from event.error
            if isinstance(event, RunCancelled):
                raise Cancelled("the run was cancelled")
        return recorder.run()

    def events(self, graph: Graph, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        """Run a prepared graph, event by event."""
        extra: dict[str, JSON] = {} if graph.ui is None else {"workflow": graph.ui}
        return run_graph(
            graph,
            self.nodes,
            cache=self._cache,
            services=self.services,
            extra_pnginfo=extra,
            cancel=cancel,
            find_file=self.folders.find,
            inside=torch.inference_mode,
        )

    def close(self) -> None:
        """Let go of models, results and temporary pictures."""
        self._cache.clear()
        self.packs.close()
        self.memory.release()
        self._temp.cleanup()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def edit_graph(
    graph: Graph,
    schemas: Mapping[str, NodeSchema],
    folders: ModelFolders,
    own: OwnChecks | None = None,
    *,
    set: Mapping[str, JSON] | Iterable[str] = (),
    seed: int | None = None,
    loras: Sequence[str] = (),
) -> Graph:
    """A graph with LoRAs inserted, inputs set and the seed changed, validated against `schemas`.

    own: the checks that classes make themselves."""
    known = {**core_schemas(), **schemas}
    graph = insert_loras(graph, known, [read_lora_choice(text) for text in loras])
    texts = [f"{k}={v}" for k, v in set.items()] if isinstance(set, Mapping) else list(set)
    graph = apply_assignments(graph, known, texts)
    if seed is not None:
        graph = set_seed(graph, known, seed)
    report = validate(graph, schemas, folders.list, own=own)
    report.raise_if_bad()
    return report.graph


def run(
    source: FilePath | bytes | Mapping[str, JSON] | Graph,
    *,
    models: FilePath | Sequence[FilePath] | None = None,
    workflow: int | str | None = None,
    set: Mapping[str, JSON] | Iterable[str] = (),
    seed: int | None = None,
    loras: Sequence[str] = (),
    output_dir: FilePath = "output",
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> Run:
    """Run one workflow; see `Session` and `Session.run` for the arguments."""
    with Session(models, output_dir=output_dir, device=device, dtype=dtype) as session:
        return session.run(source, workflow=workflow, set=set, seed=seed, loras=loras)


def _read(
    source: FilePath | bytes | Mapping[str, JSON],
    workflow: int | str | None,
    schemas: Mapping[str, NodeSchema],
) -> Graph:
    import json

    if isinstance(source, Mapping):
        source = json.dumps(dict(source))
    content = source if isinstance(source, str | bytes) else Path(source)
    found = select(read_source(content), None if workflow is None else str(workflow))
    if len(found) != 1:
        raise LoraloomError("choose one workflow, from 1")
    return found[0].graph(schemas)
