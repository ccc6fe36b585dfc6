"""Which files of the model and input folders a graph names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import NodeSchema

_ADDED = frozenset({"loras", "embeddings", "controlnet", "style_models", "gligen", "hypernetworks"})
"""Kinds of files that are put onto a model, and come and go more easily than it."""
_EMBEDDING = re.compile(r"embedding:([^\s,:()]+)")


@dataclass(frozen=True, slots=True)
class NeededFile:
    """A file as a graph names it. kinds: the folders in which it may be."""

    kinds: tuple[str, ...]
    name: str

    @property
    def is_model(self) -> bool:
        return not _ADDED.intersection(self.kinds) and not any(k.startswith("input") for k in self.kinds)

    @property
    def is_added(self) -> bool:
        return bool(_ADDED.intersection(self.kinds))


def needed_files(prompt: Mapping[str, JSON], schemas: Mapping[str, NodeSchema]) -> list[NeededFile]:
    """The files that an API prompt names, in the order of its nodes, each once. What is no graph has none."""
    return [*dict.fromkeys(file for node in prompt.values() for file in _of_node(node, schemas))]


def _of_node(node: JSON, schemas: Mapping[str, NodeSchema]) -> Iterator[NeededFile]:
    if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
        return
    schema = schemas.get(str(node.get("class_type")))
    for name, value in cast("dict[str, Any]", node["inputs"]).items():
        if not isinstance(value, str):
            continue
        declared = None if schema is None else schema.input(name)
        if declared is not None and declared.folders:
            if value not in declared.choices:
                yield NeededFile(declared.folders, value)
        else:
            for found in _EMBEDDING.findall(value):
                yield NeededFile(("embeddings",), found)
