"""Hints on a workflow's LoRAs, from the files that the model folders hold. No torch."""

from __future__ import annotations

from loraloom.errors import LoraloomError
from loraloom.folders import ModelFolders
from loraloom.lora.file import read_lora
from loraloom.lora.sidecars import read_sidecars
from loraloom.lora.spelling import take_apart
from loraloom.lora.triggers import triggers_of
from loraloom.workflow.graph import Graph
from loraloom.workflow.lora_hints import LoraFacts, lora_hints


def lora_notes(graph: Graph, folders: ModelFolders) -> tuple[str, ...]:
    """One line for each thing about the graph's LoRAs that is rarely meant."""
    known: dict[str, LoraFacts | None] = {}

    def facts(name: str) -> LoraFacts | None:
        if name not in known:
            known[name] = _facts(folders, name)
        return known[name]

    return tuple(hint.line() for hint in lora_hints(graph, facts))


def _facts(folders: ModelFolders, name: str) -> LoraFacts | None:
    path = folders.find("loras", name) if name else None
    if path is None:
        return None
    try:
        file = read_lora(path)
    except LoraloomError:
        return None  # the loader says what is wrong with it
    parts = {take_apart(module.name).component or "model" for module in file.modules}
    triggers = triggers_of(file.metadata, read_sidecars(path)).words
    return LoraFacts("clip" in parts, "model" in parts, triggers)
