"""Workflows as they will run: read, changed as the user asks, checked.

Changes come in one order: LoRAs are put in, then inputs are set (those of the new LoRA loaders too), then
seeds.
"""

from __future__ import annotations

import json
import os
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

from loraloom.errors import InputError
from loraloom.folders import ModelFolders
from loraloom.preparation.lora_notes import lora_notes, with_renamed_loras
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.edit import apply_assignments, set_seed
from loraloom.workflow.graph import JSON, Graph
from loraloom.workflow.insert_lora import insert_loras, read_lora_choice
from loraloom.workflow.report import Report
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.sources import Found, read_source, select
from loraloom.workflow.ui_format import Queueing
from loraloom.workflow.validate import OwnChecks, validate

Schemas: TypeAlias = Mapping[str, NodeSchema]
Source: TypeAlias = "str | os.PathLike[str] | bytes | Mapping[str, JSON]"
"""A path, "-" for standard input, workflow or page text, bytes, or parsed JSON."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a user changes in a workflow.

    loras: "FILE[:MODEL[:CLIP]]", put right behind the model's loader. set: {"NODE.input": value} or
    "NODE.input=value" texts; NODE is an id, a title or a class name. seed: every seed, and what decides what
    `{a|b}` becomes, so that the same seed gives the same graph."""

    loras: Sequence[str] = ()
    set: Mapping[str, JSON] | Sequence[str] = ()
    seed: int | None = None


def read_workflows(
    source: Source,
    workflow: int | str | None,
    changes: Changes,
    known: Schemas,
    folders: ModelFolders | None = None,
) -> list[tuple[Found, Graph]]:
    """The workflows of a source that are asked for, changed and not yet checked.

    workflow: which one, from 1, or "all"; None where the source holds one alone. known: the classes to read
    them by. folders: see `changed`. Raises InputError."""
    if isinstance(source, Mapping):
        source = json.dumps(dict(source))
    content = source if isinstance(source, str | bytes) else Path(source)
    return [
        (found, changed(found.graph(known, Queueing.fresh(changes.seed)), changes, known, folders))
        for found in select(read_source(content), None if workflow is None else str(workflow))
    ]


def changed(graph: Graph, changes: Changes, known: Schemas, folders: ModelFolders | None = None) -> Graph:
    """The graph with changes, not yet checked. Raises InputError.

    folders: where LoRAs are looked for; one that lies elsewhere on the disk is added to them."""
    listed = (lambda name: folders.offered("loras", name)) if folders else (lambda name: None)
    graph = insert_loras(graph, known, [read_lora_choice(text, listed) for text in changes.loras])
    wanted = changes.set
    texts = [f"{k}={v}" for k, v in wanted.items()] if isinstance(wanted, Mapping) else wanted
    graph = apply_assignments(graph, known, texts)
    return graph if changes.seed is None else set_seed(graph, known, changes.seed)


@dataclass(frozen=True, slots=True)
class Preparation:
    """What workflows are prepared with. runnable: the classes that run here, by name. own: the checks that
    they make themselves."""

    runnable: Schemas
    folders: ModelFolders
    own: OwnChecks | None = None

    @property
    def known(self) -> Schemas:
        """The classes to read workflows by: those that run here, and ComfyUI's others."""
        # ChainMap asks for mutable maps though it writes to none here; the core table decodes on demand.
        maps = (cast("dict[str, NodeSchema]", schemas) for schemas in (self.runnable, core_schemas()))
        return ChainMap(*maps)

    def prepare(
        self,
        source: Source | Graph,
        workflow: int | str | None = None,
        changes: Changes = Changes(),
    ) -> list[Graph]:
        """The graphs to run: those of the source that are asked for (see `read_workflows`), ready.

        Their notes say what was found under another name, and what about their LoRAs is rarely meant.
        Raises InputError, WorkflowError, MissingModelsError."""
        known = self.known
        if isinstance(source, Graph):
            reports = [self.report(changed(source, changes, known, self.folders))]
        else:
            reports = [report for _, report in self.reports(source, workflow, changes)]
        return [_noted(ready, lora_notes(ready, self.folders)) for ready in map(_ready, reports)]

    def reports(
        self, source: Source, workflow: int | str | None = None, changes: Changes = Changes()
    ) -> list[tuple[Found, Report]]:
        """The workflows of a source, and what is right and wrong with each. Raises InputError, WorkflowError.

        Of a picture with two texts the one that can run counts: an older API prompt lacks the inputs that
        its classes got since, and the editor's workflow beside it gives them their defaults."""
        return [
            (found, self._better(found, self.report(graph), changes))
            for found, graph in read_workflows(source, workflow, changes, self.known, self.folders)
        ]

    def _better(self, found: Found, report: Report, changes: Changes) -> Report:
        if found.other is None or not report.errors:
            return report
        known = self.known
        try:
            graph = found.other.graph(known, Queueing.fresh(changes.seed))
            second = self.report(changed(graph, changes, known, self.folders))
        except InputError:
            return report
        if second.errors:
            return report
        first = report.errors[0].line()
        note = f"the picture's text 'prompt' cannot run here ({first}): its text 'workflow' is used"
        return replace(second, notes=(note, *second.notes))

    def changed(self, graph: Graph, changes: Changes) -> Graph:
        """A graph that is ready, with further changes, checked again; no further hints on its LoRAs."""
        return self.checked(changed(graph, changes, self.known, self.folders))

    def checked(self, graph: Graph) -> Graph:
        """The graph with files and values as they are spelled here. Raises what `prepare` raises."""
        return _ready(self.report(graph))

    def report(self, graph: Graph) -> Report:
        """What is right and wrong with a graph, LoRAs that were renamed found by their hash."""
        graph = with_renamed_loras(graph, self.folders)
        return validate(graph, self.runnable, self.folders.list, own=self.own)


def _ready(report: Report) -> Graph:
    report.raise_if_bad()
    return _noted(report.graph, report.notes)


def _noted(graph: Graph, notes: Iterable[str]) -> Graph:
    return replace(graph, notes=tuple(dict.fromkeys((*graph.notes, *notes))))
