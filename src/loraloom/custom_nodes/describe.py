"""What node packs declare, as JSON: the worker that runs them says it, the server that shows them reads it.

The server never runs their code itself. What it was told last is kept in a file until one of the packs' files
changes, so that it knows their classes from the start.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from loraloom.atomic_file import write_file
from loraloom.custom_nodes.load import PackFailure, Packs
from loraloom.engine.node import NodeType
from loraloom.engine.validation import checked_by_node
from loraloom.errors import FileWriteError
from loraloom.file_identity import FileIdentity
from loraloom.workflow.graph import JSON, Graph
from loraloom.workflow.implemented import read_schema
from loraloom.workflow.json_text import write_json
from loraloom.workflow.report import Problem
from loraloom.workflow.schema import NodeSchema


@dataclass(frozen=True, slots=True)
class Declared:
    """schemas: the packs' classes. checked: per class the inputs that it checks itself. failed: what was
    skipped. As `OwnChecks`, it spares those inputs the general checks, and leaves theirs to the worker."""

    schemas: Mapping[str, NodeSchema]
    checked: Mapping[str, frozenset[str]]
    failed: tuple[PackFailure, ...]

    def covers(self, class_type: str) -> frozenset[str]:
        return self.checked.get(class_type, frozenset())

    def problems(self, graph: Graph, node_ids: Iterable[str]) -> tuple[Problem, ...]:
        return ()


def said_of(packs: Packs) -> dict[str, JSON]:
    """What loaded packs declare now; `read` reads it."""
    covers = {name: sorted(checked_by_node(kind)) for name, kind in packs.nodes.items()}
    said = {
        "schemas": [asdict(_schema(kind)) for kind in packs.nodes.values()],
        "covers": {name: inputs for name, inputs in covers.items() if inputs},
        "failed": [[failure.name, failure.cause] for failure in packs.failed],
    }
    return cast("dict[str, JSON]", said)


def _schema(kind: NodeType) -> NodeSchema:
    """What a class declares now; what it declared first where it fails to do so again."""
    try:
        return kind.schema if kind.declared is None else kind.declared()
    except Exception:  # noqa: BLE001 - code of a node pack
        return kind.schema


def read(said: JSON) -> Declared:
    """What `said_of` said. Raises KeyError, TypeError or ValueError for anything else."""
    found = cast("dict[str, Any]", said)
    return Declared(
        {row["name"]: read_schema(row) for row in found["schemas"]},
        {name: frozenset(inputs) for name, inputs in found["covers"].items()},
        tuple(PackFailure(name, cause) for name, cause in found["failed"]),
    )


class Kept:
    """The file that keeps what the packs in some directories declared."""

    def __init__(self, path: Path, directories: Sequence[Path], version: str = "") -> None:
        """version: of the program that reads packs; another may read them otherwise."""
        self._path, self._directories, self._version = path, directories, version

    def read(self) -> Declared | None:
        """What was kept; None when a file of a pack is another by now, or nothing was kept."""
        try:
            kept = json.loads(self._path.read_bytes())
            return read(kept["said"]) if kept["of"] == self._fingerprint() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, said: JSON) -> None:
        """Keep it; where that cannot be written the next start has to wait for the worker."""
        try:
            write_file(self._path, write_json({"of": self._fingerprint(), "said": said}).encode())
        except (FileWriteError, OSError):
            return

    def _fingerprint(self) -> str:
        """Raises OSError when a file is taken away meanwhile."""
        digest = hashlib.sha256(self._version.encode())
        seen: set[str] = set()
        for directory in self._directories:
            for folder, inner, files in os.walk(directory, followlinks=True):  # packs are often links
                real = os.path.realpath(folder)
                inner[:] = sorted(
                    d for d in inner if real not in seen and d != "__pycache__" and not d.startswith(".")
                )
                seen.add(real)
                for name in sorted(f for f in files if f.endswith(".py") and not f.startswith(".")):
                    found = FileIdentity.of(os.path.join(folder, name))
                    digest.update(f"{found.path}\0{found.state}\n".encode())
        return digest.hexdigest()
