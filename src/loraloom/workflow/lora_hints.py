"""Hints on how a workflow uses its LoRAs: what runs as it stands, and is rarely what was meant.

Hints never block. What a file holds comes through a callable, so that nothing here opens files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from loraloom.workflow.graph import Graph, GraphNode, Link

BOTH, MODEL_ONLY = "LoraLoader", "LoraLoaderModelOnly"

_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>:]+(?::[^<>]*)?>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What a hint needs to know of a LoRA file. changes_text: it holds text-encoder weights."""

    changes_text: bool
    changes_model: bool
    triggers: tuple[str, ...] = ()


FactsOf: TypeAlias = Callable[[str], "LoraFacts | None"]
"""LoRA name as the workflow spells it → its facts; None where there is no such file."""


@dataclass(frozen=True, slots=True)
class Hint:
    """One remark about one node."""

    node_id: str
    label: str
    message: str

    def line(self) -> str:
        return f"{self.label}: {self.message}"


def lora_hints(graph: Graph, facts: FactsOf) -> list[Hint]:
    """All hints for a graph, in the order of its nodes."""
    return list(_Wiring(graph, facts).hints())


class _Wiring:
    """A graph with its links known from both ends."""

    def __init__(self, graph: Graph, facts: FactsOf) -> None:
        self.nodes = graph.nodes
        self.loras = [node for node in graph.nodes.values() if node.class_type in (BOTH, MODEL_ONLY)]
        self.facts: Mapping[str, LoraFacts | None] = {node.id: facts(_name(node)) for node in self.loras}
        self.users: dict[Link, list[GraphNode]] = {}
        for node in graph.nodes.values():
            for link in node.links().values():
                self.users.setdefault(link, []).append(node)

    def hints(self) -> Iterator[Hint]:
        for node in self.loras:
            for message in (*self._strengths(node), *self._wires(node), *self._words(node)):
                yield Hint(node.id, node.label(), message)
        yield from self._tags()

    def _strengths(self, node: GraphNode) -> Iterator[str]:
        """Strengths of nothing, and the same file twice on one path."""
        values = [node.inputs.get(name) for name in ("strength_model", "strength_clip")]
        if all(value == 0 for value in values if value is not None):
            yield "its strengths are 0: it changes nothing"
            return
        before = [
            other for other in self._upstream(node, "model")
            if other in self.loras and _name(other) == _name(node)
        ]  # fmt: skip
        if not before:
            return
        total = sum(_strength(other) for other in (node, *before))
        where = ", ".join(other.label() for other in before)
        if abs(total) < 1e-9:
            yield f"{_name(node)} is applied with opposite strengths here and in {where}: they cancel"
        else:
            yield f"{_name(node)} is applied a second time on this path (first in {where}): {total:g} in all"

    def _wires(self, node: GraphNode) -> Iterator[str]:
        facts = self.facts[node.id]
        model_used, clip_used = (bool(self.users.get(Link(node.id, slot))) for slot in (0, 1))
        if not model_used and not (clip_used and node.class_type == BOTH):
            yield "nothing uses its output: it has no effect"
            return
        if facts is None:
            return
        if node.class_type == MODEL_ONLY:
            if facts.changes_text:
                yield (
                    "this LoRA has text-encoder weights, which this loader leaves out;"
                    " use Load LoRA (LoraLoader) with MODEL and CLIP"
                )
            return
        if not facts.changes_text:
            yield "this LoRA has no text-encoder weights: LoraLoaderModelOnly does the same with less wiring"
        elif not clip_used and (encoders := self._encoders_beside(node)):
            names = ", ".join(encoder.label() for encoder in encoders)
            yield (
                f"its CLIP output is not connected, and {names} takes CLIP from before it: prompts are"
                " encoded without the LoRA. Connect both MODEL and CLIP through Load LoRA"
            )
        elif not model_used and facts.changes_model:
            yield "its MODEL output is not connected: only the text encoders are changed"

    def _encoders_beside(self, node: GraphNode) -> list[GraphNode]:
        """Text encoding nodes that take the CLIP which goes into this LoRA, past it."""
        source = node.inputs.get("clip")
        if not isinstance(source, Link):
            return []
        origins = {source.node, *(other.id for other in self._upstream(node, "clip"))}
        found: list[GraphNode] = []
        for other in self.nodes.values():
            link = other.inputs.get("clip")
            if other.class_type.startswith("CLIPTextEncode") and isinstance(link, Link):
                chain = {link.node, *(one.id for one in self._upstream(other, "clip"))}
                if node.id not in chain and chain & origins:
                    found.append(other)
        return found

    def _words(self, node: GraphNode) -> Iterator[str]:
        """Trigger words that no prompt of the pictures it takes part in says."""
        facts = self.facts[node.id]
        if facts is None or not facts.triggers:
            return
        prompts = [_plain(text) for text in self._prompts(node)]
        if not prompts or any(_plain(word) in prompt for word in facts.triggers for prompt in prompts):
            return
        words = " or ".join(repr(word) for word in facts.triggers[:4])
        yield f"this LoRA answers to {words}, which its prompt does not say"

    def _prompts(self, node: GraphNode) -> list[str]:
        """The texts behind the positive conditioning of every node that samples with this LoRA's model."""
        texts: list[str] = []
        for other in self.nodes.values():
            samples = any(name in other.inputs for name in ("positive", "conditioning", "guider"))
            if samples and node in self._upstream(other, "model"):
                for name in ("positive", "conditioning"):
                    for source in self._upstream(other, name, every=True):
                        texts += _texts(source)
        return texts

    def _tags(self) -> Iterator[Hint]:
        for node in self.nodes.values():
            for text in _texts(node):
                for tag in _TAG.findall(text):
                    yield Hint(
                        node.id, node.label(),
                        f"{tag} is not ComfyUI's way to load a LoRA and stays plain text:"
                        " use a Load LoRA node, or --lora FILE:STRENGTH",
                    )  # fmt: skip

    def _upstream(self, node: GraphNode, name: str, *, every: bool = False) -> list[GraphNode]:
        """The nodes behind an input; of those, only through inputs of the same name, or through all."""
        found: dict[str, GraphNode] = {}
        waiting = [node.inputs.get(name)]
        while waiting:
            link = waiting.pop()
            if not isinstance(link, Link) or link.node in found or link.node not in self.nodes:
                continue
            source = self.nodes[link.node]
            found[source.id] = source
            waiting += source.links().values() if every else [source.inputs.get(name)]
        return list(found.values())


def _name(node: GraphNode) -> str:
    return str(node.inputs.get("lora_name", ""))


def _strength(node: GraphNode) -> float:
    value = node.inputs.get("strength_model")
    return float(value) if isinstance(value, int | float) else 0.0


def _texts(node: GraphNode) -> list[str]:
    """The prompt texts that a node itself holds."""
    if not node.class_type.startswith("CLIPTextEncode") and "String" not in node.class_type:
        return []
    return [value for value in node.inputs.values() if isinstance(value, str)]


def _plain(text: str) -> str:
    """A text as trigger words are compared: case, underscores and emphasis do not count."""
    return " ".join(re.sub(r"[_\\()\[\]{}:]+", " ", text.lower()).split())
