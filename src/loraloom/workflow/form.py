"""Any workflow as a form: every value that a person may set, by node, with what it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loraloom.workflow.graph import JSON, Graph, GraphNode, Link
from loraloom.workflow.schema import FileLister, Input, NodeSchema

Kind = Literal["text", "whole", "number", "yes_no", "choice"]
_KINDS: Mapping[str, Kind] = {
    "STRING": "text", "INT": "whole", "FLOAT": "number", "BOOLEAN": "yes_no", "COMBO": "choice",
}  # fmt: skip
# Classes that a person looks for first; others follow in the order of the workflow.
_FIRST = (
    "CLIPTextEncode", "CLIPTextEncodeFlux", "CLIPTextEncodeSDXL", "LoraLoader", "LoraLoaderModelOnly",
    "EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage", "KSampler", "KSamplerAdvanced",
    "RandomNoise", "CheckpointLoaderSimple", "UNETLoader",
)  # fmt: skip
# Longest list of choices that a form carries: a library of files is searched elsewhere.
MAX_CHOICES = 20_000


@dataclass(frozen=True, slots=True)
class Field:
    """One value. choices: what it may be, for a choice. seed: an editor rolls it anew before each run."""

    input: str
    kind: Kind
    value: JSON
    choices: tuple[JSON, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    multiline: bool = False
    seed: bool = False
    files: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """The values of one node. known: False for a class that is not there, whose values are only guessed."""

    node: str
    title: str
    class_type: str
    fields: tuple[Field, ...]
    known: bool = True


def form_of(graph: Graph, schemas: Mapping[str, NodeSchema], files: FileLister) -> list[Section]:
    """The nodes that have values, those that matter most first."""
    found: list[Section] = []
    for node in graph.nodes.values():
        schema = schemas.get(node.class_type)
        fields = _guessed(node) if schema is None else _described(node, schema, files)
        if fields:
            title = node.title or (schema.display_name if schema else "") or node.class_type
            found.append(Section(node.id, title, node.class_type, tuple(fields), schema is not None))
    rank = {name: place for place, name in enumerate(_FIRST)}
    return sorted(found, key=lambda section: rank.get(section.class_type, len(rank)))


def _described(node: GraphNode, schema: NodeSchema, files: FileLister) -> list[Field]:
    found: list[Field] = []
    for entry in schema.inputs:
        value = node.inputs.get(entry.name, entry.default)
        kind = _KINDS.get(entry.type)
        if kind is None or not entry.is_widget or isinstance(value, Link) or value is None:
            continue
        found.append(_field(entry, kind, value, files))
    return found


def _field(entry: Input, kind: Kind, value: JSON, files: FileLister) -> Field:
    choices: Sequence[JSON] = entry.all_choices(files)[:MAX_CHOICES] if kind == "choice" else ()
    return Field(
        input=entry.name,
        kind=kind,
        value=value,
        choices=tuple(choices),
        low=_number(entry.options.get("min")),
        high=_number(entry.options.get("max")),
        step=_number(entry.options.get("step")),
        multiline=entry.options.get("multiline") is True,
        seed=entry.name in ("seed", "noise_seed"),
        files=entry.folders[0] if entry.folders else "",
    )


def _guessed(node: GraphNode) -> list[Field]:
    """Values of a class that nobody knows, by what they are now."""
    found: list[Field] = []
    for name, value in node.inputs.items():
        kind: Kind | None = None
        if isinstance(value, bool):
            kind = "yes_no"
        elif isinstance(value, int):
            kind = "whole"
        elif isinstance(value, float):
            kind = "number"
        elif isinstance(value, str):
            kind = "text"
        if kind is not None and not isinstance(value, Link):
            found.append(Field(name, kind, value, multiline=isinstance(value, str) and len(value) > 40))
    return found


def _number(value: JSON) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
