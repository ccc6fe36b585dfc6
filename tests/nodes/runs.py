"""A node's run context for calling node functions in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from loraloom.folders import ModelFolders
from loraloom.models.residency.memory import Memory
from loraloom.runtime.lora_shelf import LoraShelf
from loraloom.runtime.output_files import OutputFolder
from loraloom.runtime.services import Services
from loraloom.workflow.graph import JSON, GraphNode

Computed = TypeVar("Computed")


class PlainRun:
    """A `NodeRun` that keeps what nodes tell it."""

    def __init__(self, root: Path) -> None:
        self.node_id = "1"
        self.node = GraphNode("1", "Test", {})
        self.nodes: Mapping[str, GraphNode] = {"1": self.node}
        self.parents: Mapping[str, str] = {}
        self.nodes: Mapping[str, GraphNode] = {"1": self.node}
        self.parents: Mapping[str, str] = {}
        self.prompt: dict[str, JSON] = {}
        self.extra_pnginfo: Mapping[str, JSON] = {}
        self.warnings: list[str] = []
        self.noted: list[tuple[str, JSON]] = []
        self.steps: list[tuple[float, float]] = []
        (root / "input").mkdir(parents=True, exist_ok=True)
        self.services: object = Services(
            folders=ModelFolders([root / "models"], input_dir=root / "input"),
            memory=Memory("cpu", "fp32"),
            loras=LoraShelf(),
            output=OutputFolder(root / "output"),
            temp=OutputFolder(root / "temp"),
            input_dir=root / "input",
            training=root / "training",
        )

    def progress(self, value: float, total: float, preview: object | None = None) -> None:
        self.steps.append((value, total))

    def check_cancelled(self) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def note(self, kind: str, payload: JSON) -> None:
        self.noted.append((kind, payload))

    def note_later(self, kind: str, computed: Future[Computed], payload: Callable[[Computed], JSON]) -> None:
        self.note(kind, payload(computed.result()))

    def notes(self, kind: str) -> list[JSON]:
        return [payload for noted, payload in self.noted if noted == kind]

    def cached(self, key: str, make: Callable[[], object]) -> object:
        return make()


def run_on(root: Path, memory: Memory) -> PlainRun:
    """A run whose models are in that memory."""
    run = PlainRun(root)
    run.services = replace(cast("Services", run.services), memory=memory)
    return run
