"""Putting a LoRA into a workflow from outside: a loader node right behind the model it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from loraloom.errors import InputError
from loraloom.workflow.graph import Graph, GraphNode, Link, Value
from loraloom.workflow.schema import NodeSchema


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """A LoRA file with its strengths. clip None: the same as for the model."""

    name: str
    model: float = 1.0
    clip: float | None = None


def read_lora_choice(text: str, listed: Callable[[str], str | None] = lambda name: None) -> LoraChoice:
    """`FILE`, `FILE:MODEL` or `FILE:MODEL:CLIP`; raises InputError.

    listed: what workflows call a file, None if there is no such file. A file's name may hold colons, and lack
    its suffix: strengths are read from the end, where the whole is no file. Where no part is one, numbers at
    the end are strengths.
    """
    parts = text.split(":")
    for count in range(min(3, len(parts))):
        name = ":".join(parts[: len(parts) - count])
        if name and (known := listed(name) or listed(f"{name}.safetensors")) is not None:
            return LoraChoice(known, *(_strength(part, text) for part in parts[len(parts) - count :]))
    count = 0
    while count < min(2, len(parts) - 1) and _is_number(parts[-1 - count]):
        count += 1
    name = ":".join(parts[: len(parts) - count])
    if not name.strip(":"):
        raise InputError(f"{text!r} is not a LoRA; expected FILE, FILE:STRENGTH or FILE:MODEL:CLIP")
    return LoraChoice(name, *(_strength(part, text) for part in parts[len(parts) - count :]))


def insert_loras(graph: Graph, schemas: Mapping[str, NodeSchema], loras: Sequence[LoraChoice]) -> Graph:
    """The graph with the LoRAs in a chain behind every node that loads a model, in the order given.

    Where that node (or another loader) gives a CLIP too, LoraLoader changes both, else LoraLoaderModelOnly
    the model. Raises InputError when the workflow loads no model."""
    if not loras:
        return graph
    sources = [n for n in graph.nodes.values() if _loads_model(n, schemas)]
    if not sources:
        raise InputError(
            "--lora: the workflow has no node that loads a model (such as CheckpointLoaderSimple)"
        )
    for source in sources:
        graph = _behind(graph, schemas, source, loras)
    return graph


def _behind(
    graph: Graph, schemas: Mapping[str, NodeSchema], source: GraphNode, loras: Sequence[LoraChoice]
) -> Graph:
    old_model = Link(source.id, _slot(source, schemas, "MODEL") or 0)
    clip_slot = _slot(source, schemas, "CLIP")
    old_clip = None if clip_slot is None else Link(source.id, clip_slot)
    model, clip = old_model, old_clip
    added: dict[str, GraphNode] = {}
    for lora in loras:
        node_id = _free_id(graph, added)
        inputs: dict[str, Value] = {"model": model, "lora_name": lora.name, "strength_model": lora.model}
        if clip is None:
            added[node_id] = GraphNode(node_id, "LoraLoaderModelOnly", inputs, f"--lora {lora.name}")
        else:
            strength = lora.model if lora.clip is None else lora.clip
            inputs |= {"clip": clip, "strength_clip": strength}
            added[node_id] = GraphNode(node_id, "LoraLoader", inputs, f"--lora {lora.name}")
            clip = Link(node_id, 1)
        model = Link(node_id, 0)
    moved = {old_model: model} | ({old_clip: clip} if old_clip and clip else {})
    nodes = {node.id: _rewired(node, moved) for node in graph.nodes.values()}
    return replace(graph, nodes={**nodes, **added})


def _rewired(node: GraphNode, moved: Mapping[Link, Link]) -> GraphNode:
    inputs = {n: moved.get(v, v) if isinstance(v, Link) else v for n, v in node.inputs.items()}
    return replace(node, inputs=inputs)


def _slot(node: GraphNode, schemas: Mapping[str, NodeSchema], kind: str) -> int | None:
    schema = schemas.get(node.class_type)
    outputs = schema.outputs if schema else ()
    return next((i for i, output in enumerate(outputs) if output.type == kind), None)


def _loads_model(node: GraphNode, schemas: Mapping[str, NodeSchema]) -> bool:
    if _slot(node, schemas, "MODEL") is None:
        return False
    return not any(isinstance(v, Link) and name.startswith("model") for name, v in node.inputs.items())


def _free_id(graph: Graph, added: Mapping[str, GraphNode]) -> str:
    numbers = [int(i) for i in (*graph.nodes, *added) if i.isascii() and i.isdigit() and len(i) < 18]
    return str(max(numbers, default=0) + 1)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _strength(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -100 <= value <= 100:
        raise InputError(f"{whole!r}: {text!r} is not a strength; expected a number from -100 to 100")
    return value
