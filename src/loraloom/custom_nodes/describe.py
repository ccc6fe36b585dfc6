"""What node packs declare, found out in a process of its own: a server never runs their code itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from loraloom.custom_nodes.load import PackFailure, load_packs
from loraloom.engine.validation import checked_by_node
from loraloom.errors import InputError
from loraloom.folders import model_folders
from loraloom.workflow.graph import Graph
from loraloom.workflow.implemented import read_schema
from loraloom.workflow.report import Problem
from loraloom.workflow.schema import NodeSchema

TIMEOUT_SECONDS = 300.0


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


def declared_by(
    directories: Sequence[Path],
    *,
    models: Sequence[Path] | None = None,
    extra_paths: Sequence[Path] = (),
    input_dir: Path = Path("input"),
    timeout: float = TIMEOUT_SECONDS,
) -> Declared:
    """The classes of the packs in these directories; models, extra_paths: see `folders.model_folders`.

    What packs print goes to standard error. Raises InputError when a directory is not there, or when a pack
    ends the process that imports it or takes longer than `timeout` seconds."""
    asked = {
        "directories": [str(d) for d in directories],
        "models": None if models is None else [str(m) for m in models],
        "extra_paths": [str(p) for p in extra_paths],
        "input_dir": str(input_dir),
    }
    for directory in directories:
        if not directory.is_dir():
            raise InputError(f"{directory} is not a folder; expected one that holds node packs")
    command = [sys.executable, "-m", "loraloom.custom_nodes.describe", json.dumps(asked)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the node packs were not imported within {timeout:.0f} seconds") from error
    try:
        said = cast("dict[str, Any]", json.loads(done.stdout))
    except json.JSONDecodeError as error:
        where = ", ".join(map(str, directories))
        raise InputError(
            f"a node pack in {where} ended the process that imported it (exit code {done.returncode}); "
            "what it printed last says which"
        ) from error
    return Declared(
        {row["name"]: read_schema(row) for row in said["schemas"]},
        {name: frozenset(inputs) for name, inputs in said["covers"].items()},
        tuple(PackFailure(name, cause) for name, cause in said["failed"]),
    )


def main() -> None:
    """Answer on standard output what `declared_by` asks in the first argument."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = cast("dict[str, Any]", json.loads(sys.argv[1]))
    models = None if asked["models"] is None else [Path(m) for m in asked["models"]]
    folders = model_folders(models, [Path(p) for p in asked["extra_paths"]], Path(asked["input_dir"]))
    packs = load_packs([Path(d) for d in asked["directories"]], folders=folders)
    covers = {name: sorted(checked_by_node(kind)) for name, kind in packs.nodes.items()}
    said = {
        "schemas": [asdict(kind.schema) for kind in packs.nodes.values()],
        "covers": {name: inputs for name, inputs in covers.items() if inputs},
        "failed": [[failure.name, failure.cause] for failure in packs.failed],
    }
    with answer:
        json.dump(said, answer)


if __name__ == "__main__":
    main()
