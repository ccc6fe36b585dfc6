"""Results kept from run to run, and the keys that say when they still hold.

A key is a digest of a node's class, its literal inputs, the identity of the files it names, what its
`is_changed` says, and the keys of the nodes it takes inputs from. Two nodes with one key give one result.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from loraloom.engine.events import Said
from loraloom.workflow.graph import JSON, GraphNode, Link

Policy: TypeAlias = Literal["classic", "lru", "none"]
Key: TypeAlias = "str | None"
"""None: the node's result never holds for another run."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A node's result: per output a list of values (one, unless lists are involved), and its `ui`.

    said: its notes and warnings, which hold for every run that uses the result.
    """

    outputs: tuple[list[object], ...]
    ui: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    said: tuple[Said, ...] = ()


class Cache:
    """Results of earlier runs.

    classic: keeps what the latest run's nodes gave, and nothing older. lru: keeps the `limit` results used
    last. none: keeps nothing, so that values are freed as soon as no node of the run needs them.
    """

    def __init__(self, policy: Policy = "classic", limit: int = 100) -> None:
        self.policy, self.limit = policy, limit
        self._entries: OrderedDict[str, tuple[Entry, str | None]] = OrderedDict()
        self._objects: dict[tuple[str, str], dict[str, object]] = {}

    def begin(self, keys: Mapping[str, Key], classes: Mapping[str, str]) -> None:
        """A run of these nodes begins: what the policy does not keep is dropped now, before memory is needed.

        keys, classes: key and class of every node, by id.
        """
        if self.policy == "classic":
            kept = set(keys.values())
            for key, (_, root) in [*self._entries.items()]:
                if key not in kept and root not in kept:
                    del self._entries[key]
        for node_id, class_type in [*self._objects]:
            if classes.get(node_id) != class_type:
                del self._objects[node_id, class_type]

    def get(self, key: Key) -> Entry | None:
        if key is None or key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Key, entry: Entry, root: Key = None) -> None:
        """Keep a result; `root` is the key of the node that was expanded into this one and keeps it alive."""
        if key is None or self.policy == "none":
            return
        self._entries[key] = (entry, root)
        self._entries.move_to_end(key)
        while self.policy == "lru" and len(self._entries) > self.limit:
            self._entries.popitem(last=False)

    def forget(self, key: Key) -> None:
        if key is not None:
            self._entries.pop(key, None)

    def objects(self, node_id: str, class_type: str) -> dict[str, object]:
        """What a node keeps for itself between runs, as long as it stays in the graph."""
        return self._objects.setdefault((node_id, class_type), {})

    def clear(self) -> None:
        self._entries.clear()
        self._objects.clear()


def key_of(node: GraphNode, keys: Mapping[str, Key], facts: Collection[object]) -> Key:
    """The key of a node whose producers have keys; `facts` is what else its result depends on.

    None if a producer or a fact makes the result unrepeatable (NaN, or a value that cannot be written).
    """
    inputs: list[object] = []
    for name in sorted(node.inputs):
        value = node.inputs[name]
        if isinstance(value, Link):
            producer = keys[value.node]
            if producer is None:
                return None
            inputs.append([name, producer, value.slot])
        else:
            inputs.append([name, value])
    try:
        text = json.dumps(
            [node.class_type, inputs, [*facts]], allow_nan=False, sort_keys=True, default=_written
        )
    except (TypeError, ValueError, RecursionError):
        return None
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def _written(value: object) -> object:
    """Values beside JSON that `is_changed` functions return."""
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, set | frozenset):
        return ["set", sorted(repr(item) for item in cast("set[object]", value))]
    raise TypeError(type(value).__name__)
