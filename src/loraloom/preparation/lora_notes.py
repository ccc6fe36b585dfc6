"""Hints on a workflow's LoRAs, from the files that the model folders hold. No torch."""

from __future__ import annotations

from dataclasses import replace

from loraloom.errors import LoraloomError
from loraloom.folders import ModelFolders
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import HashIndex
from loraloom.lora.module_names import take_apart
from loraloom.lora.sidecars import read_sidecars
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


def with_renamed_loras(graph: Graph, folders: ModelFolders) -> Graph:
    """The graph with LoRAs that were renamed or moved found again by the hash that the workflow carries."""
    stated = {reference.name: reference.hash for reference in graph.models if reference.hash}
    lost = [
        (node.id, name)
        for node in graph.nodes.values()
        if isinstance(name := node.inputs.get("lora_name"), str)
        and name in stated
        and folders.find("loras", name) is None
    ]
    if not lost:
        return graph
    index = HashIndex()
    names = {folders.resolve("loras", name): name for name in folders.list("loras")}
    for node_id, name in lost:
        path = index.find(str(stated[name]), names)
        if path is not None:
            note = f"{name} is called {names[path]} here: found by its hash"
            graph = graph.with_inputs(node_id, {"lora_name": names[path]})
            graph = replace(graph, notes=(*graph.notes, note))
    index.save()
    return graph
