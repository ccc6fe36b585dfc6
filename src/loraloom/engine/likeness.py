"""Whether workflows are variants of one another: alike but for their LoRAs, seeds and texts.

Such workflows load the same base model and sample pictures of one size in the same steps, so that it is worth
while to run them together (`together`). Node ids, titles and what no output needs do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from loraloom.engine.plan import order
from loraloom.errors import WorkflowError
from loraloom.workflow.graph import Graph, GraphNode, Link
from loraloom.workflow.schema import Input, NodeSchema

Digests: TypeAlias = "list[str]"
"""One for each output of a node."""


def likeness(
    graph: Graph, schemas: Mapping[str, NodeSchema], targets: Iterable[str] | None = None
) -> str | None:
    """Equal for variants of one workflow. None where it cannot be told (unknown classes, circles, no output)
    and for workflows with nodes that run alone.

    targets: the output nodes to run; None: all."""
    outputs = [
        node.id
        for node in graph.nodes.values()
        if node.class_type in schemas and schemas[node.class_type].output_node
    ]
    wanted = sorted(set(outputs) if targets is None else set(outputs) & set(targets))
    try:
        needed = order(graph.nodes, wanted)
    except WorkflowError:
        return None
    known = [schemas.get(graph.nodes[node_id].class_type) for node_id in needed]
    if not wanted or any(schema is None or schema.alone for schema in known):
        return None
    found: dict[str, Digests] = {}
    for node_id in needed:
        node = graph.nodes[node_id]
        found[node_id] = _digests(node, schemas[node.class_type], found)
    return _digest(sorted(found[node_id][-1] for node_id in wanted))


def _digests(node: GraphNode, schema: NodeSchema, known: Mapping[str, Digests]) -> Digests:
    declared = {one.name: one for one in schema.inputs}
    carries_lora = any("loras" in one.folders for one in schema.inputs)
    values: list[object] = []
    for name in sorted(node.inputs):
        value, one = node.inputs[name], declared.get(name)
        if isinstance(value, Link):
            values.append([name, _of(value, known)])
        elif not carries_lora and not _is_free(one):
            values.append([name, value])
    whole = [node.class_type, values]
    made = [_digest([*whole, slot]) for slot in range(len(schema.outputs))]
    if carries_lora:
        # What comes out is what goes in, with a LoRA on it: a stack may be of any height.
        for slot, output in enumerate(schema.outputs):
            same = (one.name for one in schema.inputs if one.type == output.type)
            links = (node.inputs.get(name) for name in same)
            through = next((link for link in links if isinstance(link, Link)), None)
            made[slot] = _digest("nothing") if through is None else _of(through, known)
    return [*made, _digest(whole)]


def _of(link: Link, known: Mapping[str, Digests]) -> str:
    outputs = known[link.node][:-1]
    return outputs[link.slot] if 0 <= link.slot < len(outputs) else _digest(["no output", link.slot])


def _is_free(declared: Input | None) -> bool:
    """Whether variants may differ in it: texts, and numbers that an editor changes after each run (seeds)."""
    if declared is None:
        return False
    return declared.type == "STRING" or bool(declared.options.get("control_after_generate"))


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
